"""Guidance that differs between triplets, and students that take it as a condition; prompts from a file."""

import runpy
import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from pydantic import ValidationError
from tools.imports import ROOT
from torch import Tensor

from fewstep.backbones.model import Model, open_model
from fewstep.backbones.protocol import Backbone
from fewstep.chain import load_chain
from fewstep.checks.data import faults as data_faults
from fewstep.config.sampling import SamplingConfig
from fewstep.config.training import StudentTrainingConfig
from fewstep.config.triplets import TripletsConfig
from fewstep.core.errors import UserError
from fewstep.core.files import read_json
from fewstep.core.keyed import Key
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.data.noise import noise_key
from fewstep.data.triplets import TripletBatch, collate, open_triplets
from fewstep.diffusion.denoiser import GUIDANCE, Conditions, Estimate
from fewstep.diffusion.halving import halving_target
from fewstep.diffusion.solvers import at
from fewstep.export.pipeline import export
from fewstep.methods import direct, halve, reflow
from fewstep.sampling.draw import Sampler
from fewstep.students.context import Context
from fewstep.students.learn import Task, learn, method_module
from fewstep.students.start import start_and_student
from fewstep.training.method import Rows
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import CAPTIONS
from tests.unit.test_metrics_record import METRICS

TRAINING = StudentTrainingConfig(steps=2, batch_size=4, learning_rate=0.02)
EMBEDDED = {"from": "teacher", "guidance_embedding": True, "training": TRAINING}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    prepare_images()


def drawn() -> TripletBatch:
    stream = open_triplets([TRIPLETS / "0"], Key(0, "order"))
    rows = sorted(stream.rows(range(stream.total)), key=lambda triplet: triplet.index)
    return collate(rows, noise_key(0), torch.device("cpu"))


def latents(model: Model, backbone: Backbone, guidance: float, steps: int = 1) -> Tensor:
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        conditions = backbone.encode_prompts(CAPTIONS)
    return Sampler(model, backbone, SamplingConfig(guidance=guidance)).latents(conditions, noise, steps)


def test_each_triplet_has_its_own_guidance() -> None:
    backbone = import_miniature("sd")
    draw_triplets(backbone, guidance=(1.0, 5.0))
    random = drawn()
    scales = random.conditions[GUIDANCE]
    assert scales.min() >= 1 and scales.max() <= 5 and len(set(scales.tolist())) == len(scales)
    for i in (0, 5):
        sampler = Sampler(
            open_model(TEACHER, backbone), backbone, SamplingConfig(guidance=float(scales[i]), steps=2)
        )
        one = {"text": random.conditions["text"][i : i + 1]}
        alone = sampler.latents(one, random.eps[i : i + 1], 2)
        torch.testing.assert_close(alone[0], random.x_0[i], atol=1e-4, rtol=1e-4)
    assert read_json(TRIPLETS / "0" / "manifest.json")["facts"]["guidance"] == [1.0, 5.0]


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_student_begins_as_its_start_and_learns_to_depend_on_guidance(family: str) -> None:
    backbone = import_miniature(family)
    draw_triplets(backbone, guidance=(1.0, 9.0))
    start = open_model(TEACHER, backbone)
    _, student = start_and_student(start, "new", backbone, reflow.Config.model_validate(EMBEDDED), 0)
    plain = latents(start, backbone, 1.0)
    torch.testing.assert_close(latents(student, backbone, 7.0), plain)

    learn(Task("reflow", "reflow", "reflow", reflow.Config.model_validate(EMBEDDED), [TRIPLETS / "0"], 0))
    after = {"from": "reflow", "training": TRAINING}
    learn(
        Task(
            "halve",
            "halve-2",
            "halve",
            halve.Config.model_validate({**after, "steps": 2}),
            [TRIPLETS / "0"],
            0,
        )
    )
    last = direct.Config.model_validate({**after, "from": "halve-2", "method": "direct"})
    learn(Task("distill", "student", "direct", last, [TRIPLETS / "0"], 0))
    made = open_model(MODELS / "student", backbone)
    assert made.takes_guidance
    low, high = (latents(made, backbone, scale) for scale in (1.0, 9.0))
    assert (low - high).abs().max() > 1e-3
    assert Sampler(made, backbone, SamplingConfig(guidance=9.0)).evaluations(1) == 1


def test_a_student_is_shown_at_the_guidance_of_the_triplets() -> None:
    """Its images are compared with the triplets'; without guidance of their own, theirs is `sampling`'s."""
    backbone = import_miniature("sd")
    draw_triplets(backbone, guidance=4.0)
    start = open_model(TEACHER, backbone)
    _, student = start_and_student(start, "new", backbone, reflow.Config.model_validate(EMBEDDED), 0)
    torch.nn.init.normal_(student.net.get_parameter("time_embedding.cond_proj.weight").detach())
    context = Context("new", 0, start, student, backbone, [TRIPLETS / "0"], None, None)
    batch = context.triplet_batch(range(8))
    shown = context.preview(student, 1)
    for scale, same in ((4.0, True), (1.0, False)):
        sampler = Sampler(student, backbone, SamplingConfig(guidance=scale))
        assert torch.equal(sampler.images(batch.conditions, batch.eps, 1), shown) == same


def test_halving_a_teacher_learns_its_steps_at_each_triplets_guidance() -> None:
    """Its target is two DDIM steps of `u + w (c - u)`, w the triplet's own."""
    backbone = import_miniature("sd")
    draw_triplets(backbone, guidance=(1.0, 9.0))
    start = open_model(TEACHER, backbone)
    config = halve.Config.model_validate({**EMBEDDED, "steps": 2})
    context = Context("halve-2", 0, start, start, backbone, [TRIPLETS / "0"], None, None)
    method = halve.Halve(config, context, start)
    with torch.no_grad():
        batch = method.prepare(method.batch(Rows(0, range(8))))
        scales = batch.conditions[GUIDANCE]
        assert len(set(scales.tolist())) == 8
        text = {"text": batch.conditions["text"]}
        free = {"text": backbone.unconditional()["text"].expand_as(text["text"])}

        def by_hand(x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> Estimate:
            with_text, without = (start.denoiser(x, t, each) for each in (text, free))
            w = scales.reshape(-1, 1, 1, 1)
            return Estimate(*(u + w * (c - u) for c, u in zip(with_text, without, strict=True)))

        expected = halving_target(by_hand, batch.x_t, batch.i, 2, text, start.denoiser)
    torch.testing.assert_close(batch.target, expected.float(), atol=1e-4, rtol=1e-4)
    learn(Task("halve", "halve-2", "halve", config, [TRIPLETS / "0"], 0))
    assert open_model(MODELS / "halve-2", backbone).takes_guidance


def test_halving_bakes_in_the_guidance_that_the_teacher_samples_with() -> None:
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    start = open_model(TEACHER, backbone)
    round_ = {"from": "teacher", "steps": 2, "guidance": 5.0, "training": TRAINING}
    config = halve.Config.model_validate(round_)
    x = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1)).double()
    estimates = {}
    for negative in ("", "a small red star"):
        context = Context(
            "halve-2", 0, start, start, backbone, [TRIPLETS / "0"], None, None, negative_prompt=negative
        )
        sampling = SamplingConfig(guidance=5.0, negative_prompt=negative)
        with torch.no_grad():
            conditions = backbone.encode_prompts(CAPTIONS)
            baked = halve.Halve(config, context, start).teacher(x, at(0.5, x), conditions)
            sampled = Sampler(start, backbone, sampling).denoise()(x, at(0.5, x), conditions)
        assert torch.equal(baked.x_0, sampled.x_0) and torch.equal(baked.eps, sampled.eps)
        estimates[negative] = baked.x_0
    first, second = estimates.values()
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("stage", "key", "name", "section", "more"),
    [
        ("halve", "1", "halve-1", "halve", {"steps": 1}),
        ("distill", "new", "new", "students", {"method": "lcm", "grid": 4}),
    ],
)
def test_the_stages_take_the_negative_prompt_of_sampling(
    stage: str, key: str, name: str, section: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    shards = TRIPLETS.rename("shards")
    TRIPLETS.mkdir()
    shards.rename(TRIPLETS / "0")
    student = {"from": "teacher", "guidance": 5.0, "training": TRAINING.model_dump(mode="json")} | more
    method = str(more.get("method", stage))
    monkeypatch.setattr("sys.argv", [f"{stage}.py", key])

    def weights() -> Tensor:
        net = open_model(MODELS / name, backbone).net
        shutil.rmtree(MODELS / name)
        return torch.cat([weight.detach().flatten() for weight in net.parameters()])

    trained = []
    for negative in ("", "a small red star"):
        params = {"seed": 0, "features": str(TEACHER), "sampling": {"negative_prompt": negative}}
        params |= {"triplets": {"count": 8, "shard_size": 8, "groups": [0]}, section: {key: student}}
        Path("params.yaml").write_text(yaml.safe_dump(params))
        runpy.run_path(str(ROOT / f"stages/{stage}.py"))["main"]()
        trained.append(weights())
        config = method_module(method).Config.model_validate(student)
        learn(Task(f"{stage}@{key}", name, method, config, [TRIPLETS / "0/0"], 0, negative_prompt=negative))
        assert torch.equal(trained[-1], weights())
    assert not torch.equal(*trained)


def test_stock_diffusers_draws_at_the_guidance_it_receives(tmp_path: Path) -> None:
    backbone = import_miniature("sd")
    draw_triplets(backbone, guidance=(1.0, 9.0))
    learn(Task("reflow", "reflow", "reflow", reflow.Config.model_validate(EMBEDDED), [TRIPLETS / "0"], 0))
    model = open_model(MODELS / "reflow", backbone)
    export(tmp_path / "out", model, MODELS / "reflow", TEACHER, backbone, steps=1)
    stock: Any = DiffusionPipeline.from_pretrained(tmp_path / "out")
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    call = read_json(tmp_path / "out" / "fewstep.json")["call"] | {"guidance_scale": 6.0}
    drawn_by_stock = stock(CAPTIONS, latents=noise, output_type="latent", **call).images
    expected = latents(model, backbone, 6.0)
    torch.testing.assert_close(drawn_by_stock, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert "guidance_scale" in (tmp_path / "out" / "README.md").read_text()


def test_where_stock_diffusers_passes_no_guidance_it_is_built_in(tmp_path: Path) -> None:
    backbone = import_miniature("sd3")
    draw_triplets(backbone, guidance=(1.0, 9.0))
    learn(Task("reflow", "reflow", "reflow", reflow.Config.model_validate(EMBEDDED), [TRIPLETS / "0"], 0))
    model = open_model(MODELS / "reflow", backbone)
    out, measured = tmp_path / "out", METRICS.model_copy(update={"guidance": 6.0})
    export(out, model, MODELS / "reflow", TEACHER, backbone, measured, steps=2)
    stock: Any = DiffusionPipeline.from_pretrained(out)
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    call = read_json(out / "fewstep.json")["call"]
    drawn_by_stock = stock(CAPTIONS, latents=noise, output_type="latent", **call).images
    expected = latents(model, backbone, 6.0, 2)
    torch.testing.assert_close(drawn_by_stock, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert "it is fixed at 6. Leave `guidance_scale` at 0." in (out / "README.md").read_text()


def test_impossible_guidance_is_refused() -> None:
    with pytest.raises(ValidationError, match="low <= high"):
        TripletsConfig(prompts=Path("p"), count=1, groups=(0,), shard_size=1, steps=1, guidance=(3.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"students.one_step.guidance_embedding": True},
            r"one_step\.guidance_embedding: triplets\.guidance is null",
        ),
        (
            {
                "reflow.reflow.guidance_embedding": True,
                "triplets.guidance": [1.0, 5.0],
                "encode_data.train": {},
                "halve.2.data": "encoded",
            },
            r"halve\.2\.data = 'encoded': real images have no guidance",
        ),
    ],
)
def test_params_that_ask_for_impossible_guidance_are_named(changes: dict[str, Any], message: str) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, value in changes.items():
        *path, last = name.split(".")
        section = params
        for key in path:
            section = section[key]
        section[last] = value
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(UserError, match=message):
        load_chain()


def test_a_method_that_draws_guidance_needs_none_in_its_data() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    training = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    student = {"method": "lcm", "from": "teacher", "guidance_embedding": True, "training": training}
    params["encode_data"] = {"train": {}}
    for more, refused in (({"guidance": [1.0, 5.0]}, False), ({"guidance": 3.0}, True)):
        for data in ("triplets", "encoded"):
            params["students"]["new"] = student | more | {"data": data}
            Path("params.yaml").write_text(yaml.safe_dump(params))
            with pytest.raises(UserError, match=r"new\.(guid|data)") if refused else nullcontext():
                load_chain()


def test_prompts_come_from_a_file_each_as_often_as_the_others(tmp_path: Path) -> None:
    backbone = import_miniature("sd")
    lines = ["a red star", "a blue circle", "ein grüner Kreis", ""]
    (tmp_path / "prompts.txt").write_text("\n".join(lines), encoding="utf-8")
    draw_triplets(backbone, prompts=tmp_path / "prompts.txt", count=6, shard_size=6)
    assert read_json(TRIPLETS / "0" / "prompts.json")["prompts"] == sorted(lines[:3])
    text = drawn().conditions["text"]
    assert sorted(Counter(str(row.tolist()) for row in text).values()) == [2, 2, 2]


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n \n", "has no line"), (b"\xff\xfe\xff", "cannot be read")]
)
def test_a_useless_file_of_prompts_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    backbone = import_miniature("sd")
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"prompts\.txt: {message}"):
        draw_triplets(backbone, prompts=tmp_path / "prompts.txt")


def test_a_file_of_prompts_that_is_not_there_is_named_before_any_compute() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert list(data_faults(load_chain())) == []
    params["triplets"]["prompts"] = "prompts.txt"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    (fault,) = data_faults(load_chain())
    assert "triplets.prompts = prompts.txt: no such file" in fault
