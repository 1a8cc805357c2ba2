"""A student of every method, exported, draws the same images in stock diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from fewstep.backbones.model import open_model
from fewstep.config.sampling import SamplingConfig
from fewstep.core.files import read_json
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.export.pipeline import export
from fewstep.sampling.draw import Sampler
from fewstep.students.learn import Task, learn
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import CAPTIONS
from tests.unit.test_every_method import METHODS, config, untrained_classifier
from tests.unit.test_every_method import project as project

STEPS = {"lcm": (1, 2, 4), "flash": (1, 2, 4), "flow_map": (1,)}
"""Step counts of methods whose students have no own one; of a flow map, stock diffusers takes one."""


@pytest.mark.parametrize("method", METHODS)
def test_stock_diffusers_draws_its_images(method: str, tmp_path: Path) -> None:
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    chosen = config(method)
    features = untrained_classifier() if chosen.needs_feature_maps else None
    learn(Task("distill", "student", method, chosen, [TRIPLETS / "0"], 0, features))
    model = open_model(MODELS / "student", backbone)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        conditions = backbone.encode_prompts(CAPTIONS)
    for steps in STEPS.get(method) or (model.steps,):
        assert steps is not None
        out = tmp_path / f"out-{steps}"
        export(out, model, MODELS / "student", TEACHER, backbone, steps=steps)
        stock: Any = DiffusionPipeline.from_pretrained(out)
        stock.set_progress_bar_config(disable=True)
        call = read_json(out / "fewstep.json")["call"]
        generator = torch.manual_seed(7)  # the global one: not every pipeline gives its scheduler another
        latents = stock(CAPTIONS, latents=noise, output_type="latent", generator=generator, **call).images
        fresh = torch.Generator().manual_seed(7)
        drawn = [torch.randn(noise.shape, generator=fresh) for _ in range(steps)]
        sampler = Sampler(model, backbone, SamplingConfig())
        expected = sampler.latents(conditions, noise, steps, drawn.__getitem__)
        torch.testing.assert_close(latents, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
