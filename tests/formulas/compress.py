"""The loss of the method `compress`."""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from fewstep.core.keyed import Key
from fewstep.data.triplets import TripletBatch
from fewstep.diffusion.denoiser import GUIDANCE, Conditions, Denoiser, Prediction
from fewstep.diffusion.sampling import STUDENTS, TEACHERS
from fewstep.diffusion.schedules import Cosine, RectifiedFlow
from fewstep.methods import compress
from fewstep.training.method import Rows

MODULE = compress
BATCH, SHAPE, TEXT = 6, (2, 4, 4), (1, 4)
PAIRS = {
    "down_blocks.0": "down_blocks.0.attentions.1",  # the start's down block ends with a downsampler
    "up_blocks.0": "up_blocks.1",
}


def nets() -> tuple[Any, Any]:
    """A start, and its size `tiny` with weights of its own."""
    torch.manual_seed(0)
    start = UNet2DConditionModel(
        in_channels=2,
        out_channels=2,
        block_out_channels=(4, 8),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=4,
        attention_head_dim=2,
        norm_num_groups=2,
    ).eval()
    config = compress.Config.model_validate(
        {
            "from": "teacher",
            "unet": "tiny",
            "training": {"steps": 1, "batch_size": BATCH, "learning_rate": 1.0},
        }
    )
    student: Any = config.network(start)
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return start, student


START, STUDENT = nets()


def outputs(net: Any, layers: list[str], x: np.ndarray, time: np.ndarray, text: Tensor) -> list[np.ndarray]:
    """The output of a network and of its layers, by hooks of this file."""
    by_layer: dict[str, Tensor] = {}
    hooks = [
        net.get_submodule(layer).register_forward_hook(
            lambda _, inputs, output, layer=layer: by_layer.update({layer: output})
        )
        for layer in layers
    ]
    with torch.no_grad():
        raw = net(torch.from_numpy(x).float(), torch.from_numpy(time).float(), text).sample
    for hook in hooks:
        hook.remove()
    kept = [
        value if isinstance(value, Tensor) else value[0] for value in (by_layer[layer] for layer in layers)
    ]
    return [value.double().numpy() for value in (raw, *kept)]


def mse(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).mean())


def samples() -> tuple[TripletBatch, Tensor]:
    """Triplets, and the text of the empty prompt."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(BATCH, *SHAPE, generator=generator) for _ in range(2))
    text, free = torch.randn(BATCH, *TEXT, generator=generator), torch.randn(1, *TEXT, generator=generator)
    return TripletBatch(x_0, eps, {"text": text, GUIDANCE: torch.ones(BATCH)}), free


def model(net: Any, steps: int | None, schedule: Any, prediction: Prediction) -> Any:
    """What a method uses of a model."""

    def network(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        raw: Tensor = net(x, time, conditions["text"]).sample
        return raw

    sampling = STUDENTS if steps else TEACHERS
    denoiser = Denoiser(network, schedule, prediction, schedule)
    return SimpleNamespace(net=net, denoiser=denoiser, steps=steps, sampling=sampling)


def check(module: ModuleType) -> None:
    """The three terms of Kim et al. 2023, for a teacher, and for a student of 2 steps."""
    pairs, free = samples()
    positions, x_0 = range(BATCH), pairs.x_0.double().numpy()
    fresh = Key(0, "model/noise").normal(positions, SHAPE).astype(np.float64)
    uniform = Key(0, "model/times").uniform(positions, 2)[:, 0]
    dropped = Key(0, "model/unconditional").uniform(positions)[:, :1, None] < 0.5
    assert 0 < dropped.sum() < BATCH
    cases: list[tuple[Any, Any, Any, dict[str, Any]]] = [
        (None, Cosine(), Prediction.V, {"unconditional": 0.5}),
        (None, Cosine(), Prediction.EPSILON, {"feature_weight": 0, "task_weight": 2.0}),
        (
            2,
            RectifiedFlow(),
            Prediction.FLOW,
            {"noise": "pairs", "output_weight": 0.5, "feature_weight": 0.25},
        ),
        (2, RectifiedFlow(), Prediction.FLOW, {"task_weight": 0, "output_weight": 0}),
    ]
    for steps, schedule, prediction, values in cases:
        config = module.Config.model_validate(
            {
                "from": "teacher",
                "unet": "tiny",
                "training": {"steps": 1, "batch_size": BATCH, "learning_rate": 1.0},
            }
            | values
        )

        start, small = (model(net, steps, schedule, prediction) for net in (START, STUDENT))
        context = SimpleNamespace(
            start=start,
            key=lambda use: Key(0, f"model/{use}"),
            triplet_batch=lambda positions: pairs,
            clean_batch=lambda positions: (pairs.x_0, pairs.conditions),
            unconditional=lambda: {"text": free},
        )
        student = module.student_of(config, small)
        method = module.Compress(config, context, student)
        batch = method.prepare(method.batch(Rows(0, positions)))
        with torch.no_grad():
            terms = {name: float(value) for name, value in method.losses("student", batch, 0).items()}
        assert method.frozen == (START,) and method.groups["student"].modules == {"net": STUDENT}

        count = steps or 1000
        t = (np.floor(uniform * count) + 1) / count
        wide = t[:, None, None, None]
        eps = pairs.eps.double().numpy() if config.noise == "pairs" else fresh
        if steps:  # the rectified flow
            x_t, time, target = (1 - wide) * x_0 + wide * eps, 1000 * t, eps - x_0
        else:
            alpha, sigma = np.cos(np.pi * wide / 2), np.sin(np.pi * wide / 2)
            x_t, time = alpha * x_0 + sigma * eps, 1000 * t
            target = eps if prediction is Prediction.EPSILON else alpha * eps - sigma * x_0
        assert np.allclose(time, schedule.network_time(torch.from_numpy(t)).numpy())
        text = pairs.conditions["text"]
        if not steps:
            share = 0.5 if "unconditional" in values else 0.1
            chosen = Key(0, "model/unconditional").uniform(positions)[:, :1, None] < share
            text = torch.where(torch.from_numpy(chosen), free, text)
        raw, *features = outputs(STUDENT, [*PAIRS], x_t, time, text)
        wanted, *targets = outputs(START, [*PAIRS.values()], x_t, time, text)
        weights = {"task": 1.0, "output": 1.0, "feature": 1.0}
        weights |= {name.removesuffix("_weight"): value for name, value in values.items() if "weight" in name}
        expected = {
            "task": weights["task"] * mse(raw, target),
            "output": weights["output"] * mse(raw, wanted),
        }
        for block, mine, theirs in zip(PAIRS, features, targets, strict=True):
            expected[f"features/{block}"] = weights["feature"] * mse(mine, theirs)
        assert terms == {name: pytest.approx(value, rel=2e-4) for name, value in expected.items() if value}


MUTATIONS = [
    ("(uniform[:, 0] * steps).floor() + 1) / steps", "(uniform[:, 0] * steps).floor() + 0.5) / steps"),
    ("self.start.steps or GRID", "GRID"),
    ("add_noise(self.denoiser.path, x_0, eps, t)", "add_noise(self.denoiser.path, x_0, eps, 0.9 * t)"),
    ('self.config.noise == "pairs"', "False"),
    ("pairs.x_0.double(), pairs.eps.double()", "pairs.eps.double(), pairs.x_0.double()"),
    ("config.task_weight * mse_loss(raw, exact.float())", "mse_loss(raw, exact.float())"),
    ("mse_loss(raw, exact.float())", "mse_loss(raw, wanted)"),
    ("config.output_weight * mse_loss(raw, wanted)", "config.output_weight * mse_loss(raw, wanted.flip(0))"),
    ("config.output_weight * mse_loss(raw, wanted)", "config.task_weight * mse_loss(raw, wanted)"),
    ("config.feature_weight * difference", "difference"),
    ("mse_loss(features[block], targets[layer])", "(features[block] - targets[layer]).abs().mean()"),
    ("model.denoiser.raw(batch.x_t", "model.denoiser.raw(batch.x_0"),
    ("features[block], targets[layer]", "features[block], 0 * targets[layer]"),
    ("if self.free is not None:", "if self.free is None:"),
    ('context.key("unconditional")', 'context.key("other")'),
    ("self.config.unconditional\n", "0.1\n"),
    ("guided = self.start.sampling.guidance is Guidance.SCALE", "guided = False"),
    ("taps = self.blocks if config.feature_weight > 0 else {}", "taps = {}"),
]  # fmt: skip
