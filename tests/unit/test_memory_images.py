"""The estimated memory of trainings whose loss evaluates further networks, against that of real tensors."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from os import environ
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tools.imports import ROOT
from torch import nn

from fewstep.backbones.sd_new import new_vae
from fewstep.chain import Chain, load_chain
from fewstep.checks import memory
from fewstep.checks.decoding import Decoding, tensors, trace_decoding
from fewstep.checks.designs import designs
from fewstep.checks.image_networks import decoding
from fewstep.checks.live_bytes import LiveBytes
from fewstep.checks.memory import Design, Need, Setup, need
from fewstep.checks.plan import trainings
from fewstep.checks.rehearsal import rehearsal
from fewstep.checks.small_decoders import decoder_needs
from fewstep.checks.states import saved
from fewstep.checks.teacher import design
from fewstep.checks.tracing import trace
from fewstep.cli.check import memory_table
from fewstep.core.paths import TEACHER
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.methods import direct
from fewstep.training.half import halve_frozen
from fewstep.training.loop import advance
from fewstep.training.state import State
from tests.pipelines import make, unet, vae

ROWS = 8
RATE = {"learning_rate": 1e-3}
COMMON = {"from": "teacher", "training": {"steps": 4, "batch_size": ROWS, **RATE}}
STUDENTS: dict[str, dict[str, Any]] = {
    "direct": {"perceptual_weight": 1.0, "pixel_weight": 1.0},
    "flash": {"grid": 4, "discriminator": RATE, "crop": 6},
    "sdxs": {"fake": RATE, "gan": {"optimizer": RATE}},
}
"""Method -> parameters with which its loss decodes images."""
OTHERS: dict[str, dict[str, Any]] = {
    name: {"fake": RATE, "student_every": 1} for name in ("dmd2", "sid", "tdm")
}
"""Method -> parameters with which its loss evaluates other networks on the student's output."""
FEATURES = Path("features")


@pytest.fixture(autouse=True)
def precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    for name in ("MICRO_BATCH", "CHECKPOINT_ACTIVATIONS", "HALF_FROZEN"):
        monkeypatch.delenv(f"FEWSTEP_{name}", raising=False)
    trace.cache_clear()
    trace_decoding.cache_clear()
    yield
    trace.cache_clear()
    trace_decoding.cache_clear()


def chain_of(folder: Path, **sections: Any) -> Chain:
    """The default chain with a student of each of these methods."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    students = {name: {"method": name} | COMMON | values for name, values in STUDENTS.items()}
    params |= {"reflow": {}, "halve": {}, "students": students, "export": {}}
    params |= {"evaluate": {"models": {"teacher": [1]}}} | sections
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return load_chain(folder / "params.yaml")


def designed(chain: Chain) -> Design:
    denoiser = design(chain)
    assert denoiser is not None
    return denoiser


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize(
    ("method", "tolerance"),
    [("direct", 0.05), ("sdxs", 0.05), ("dmd2", 0.1), ("tdm", 0.1), ("flash", 0.15), ("sid", 0.2)],
)
def test_live_bytes_are_a_real_trainings(
    method: str, tolerance: float, recomputed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tensors that a step of the real method allocates, by real groups with their real optimizers.

    The estimate counts every activation of a further network. The discriminator of `flash` keeps only half of
    them. The frozen teacher of `sid` keeps fewer than the student, because its weights need no gradient.
    """
    monkeypatch.setenv("FEWSTEP_CHECKPOINT_ACTIVATIONS", str(int(recomputed)))
    entry = {method: {"method": method} | COMMON | (STUDENTS | OTHERS)[method]}
    chain = chain_of(tmp_path, students=entry)
    denoiser, setup = designed(chain), trainings(chain)[method]
    training = rehearsal(chain, denoiser, tmp_path, 10**10).student_training(method)
    state = State(training, tmp_path / "state")
    advance(state, method, 0, ROWS)
    others = [group for label, group in training.groups.items() if label != "student"]
    networks = [*training.frozen, *(net for group in others for net in group.modules.values())]
    with LiveBytes(1) as live:
        live.ignore(tensor for net in networks for tensor in tensors(net))
        advance(state, method, 0, ROWS)
    measured = max(map(sum, live.history))
    assert need(denoiser, setup).step == pytest.approx(measured, rel=tolerance)
    if setup.decoding is not None and not recomputed:
        without = need(denoiser, replace(setup, decoding=None)).step
        assert without is not None and without < 0.9 * measured


def test_live_bytes_are_a_small_decoders_real_training(tmp_path: Path) -> None:
    entry = COMMON | {"from": "direct", "width": 16, "own_share": 0.5}
    chain = chain_of(tmp_path, decoder={"small": entry})
    denoiser = designed(chain)
    needed = decoder_needs(chain, designs(chain, denoiser))["small"]
    training: Any = rehearsal(chain, denoiser, tmp_path, 10**10).student_training("small")
    state = State(training, tmp_path / "state")
    advance(state, "small", 0, ROWS)
    networks = [training.context.start.net, *training.frozen]
    with LiveBytes(1) as live:
        live.ignore(tensor for net in networks for tensor in tensors(net))
        live.ignore(state.tensors().values())
        advance(state, "small", 0, ROWS)
    assert needed.step == pytest.approx(max(map(sum, live.history)), rel=0.1)
    student = training.groups["student"].modules["decoder"]
    trained = sum(weight.numel() for weight in student.parameters())
    frozen = sum(map(bytes_of, networks))
    assert (needed.parameters, needed.state) == (trained, frozen + 3 * 4 * trained)
    assert needed.copy == 3 * 4 * trained
    assert [*memory_table(chain, denoiser)[0].columns[0].cells][-1] == "small"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak of memory")
def test_a_training_takes_the_estimated_memory(tmp_path: Path) -> None:
    """A process that trains on decoded images, with an allocator that keeps no freed blocks."""
    chain_of(tmp_path)
    place = environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.peak", str(tmp_path / "params.yaml"), "direct", "64"]
    done = subprocess.run(command, env=place, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, measured = map(float, done.stdout.split())
    assert measured == pytest.approx(expected, rel=0.15)


def test_frozen_networks_are_part_of_the_state(tmp_path: Path) -> None:
    chain = chain_of(tmp_path)
    denoiser, setup = designed(chain), trainings(chain)["direct"]
    assert chain.train_teacher is not None and chain.train_judge is not None
    autoencoder = new_vae(chain.train_teacher.vae)
    # Without its last layer, whose width depends on the labels.
    classifier = AttributeClassifier({"label": ("", "other")}, chain.train_judge.widths, 64)
    added = need(denoiser, setup).state - need(denoiser, replace(setup, decoding=None)).state
    assert added == bytes_of(autoencoder) + bytes_of(classifier)


def bytes_of(net: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in tensors(net))


@pytest.mark.parametrize("upcast", [True, False])
def test_the_decoder_is_rounded_as_in_a_training(upcast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoencoder with `force_upcast` stays float32, and so does the feature network."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    config = direct.Config.model_validate(COMMON | {"method": "direct"} | STUDENTS["direct"])
    assert config.image_loss is not None
    build, classifier = partial(vae, force_upcast=upcast), partial(AttributeClassifier, {"label": ("a",)})
    traced = trace_decoding(
        Decoding(f"{upcast}", config.image_loss, build, classifier), Design("sd", partial(unet, 16))
    )
    real = build().requires_grad_(False)
    before = bytes_of(real)
    halve_frozen([real])
    assert (bytes_of(real) == before) == upcast
    assert traced.weights == bytes_of(real) + bytes_of(classifier())


@pytest.mark.parametrize("features", ["clip", "dinov2", "vgg", "alex", "teacher"])
def test_a_feature_network_by_its_path(
    features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.features.network import open_features
    from tests.unit import test_features_lpips, test_features_transformers

    monkeypatch.chdir(tmp_path)
    chain = chain_of(tmp_path)
    if features == "teacher":
        chain = chain.model_copy(update={"features": TEACHER})
    else:
        if features in ("vgg", "alex"):
            test_features_lpips.write(features, FEATURES)
        else:
            test_features_transformers.make(features, FEATURES)
        chain = chain.model_copy(update={"features": FEATURES})
    made = decoding(chain, chain.students["direct"])
    assert made is not None and made.features is not None
    traced = trace_decoding(made, designed(chain))
    assert traced.peak(ROWS) > traced.live_after_forward(ROWS) > 0
    assert chain.train_teacher is not None
    autoencoder = new_vae(chain.train_teacher.vae)
    network: Any = autoencoder.encoder if features == "teacher" else open_features(FEATURES)
    assert traced.weights == bytes_of(autoencoder) + bytes_of(network)
    # Nothing that a real network uses later was made of fake tensors.
    if features in ("clip", "dinov2"):
        assert all(map_.isfinite().all() for map_ in network.maps(torch.zeros(1, 3, 32, 32)))


def test_a_foreign_teachers_autoencoder_is_known(tmp_path: Path) -> None:
    make("sd", tmp_path / "stock")
    teacher = {"backbone": "sd", "train": [], "load": [str(tmp_path / "stock")], "adopt": []}
    chain = chain_of(tmp_path, teacher=teacher, features=str(TEACHER))
    setup = trainings(chain)["direct"]
    assert setup.decoding is not None
    traced = trace_decoding(setup.decoding, designed(chain))
    autoencoder = vae()
    assert traced.weights == bytes_of(autoencoder) + bytes_of(autoencoder.encoder)
    _, hints = memory_table(chain, designed(chain))
    assert not hints
    (tmp_path / "stock" / "vae" / "config.json").unlink()
    assert trainings(chain)["direct"].decoding is None
    _, hints = memory_table(chain, designed(chain))
    assert [hint.split(":")[0] for hint in hints] == [*STUDENTS]
    assert all("autoencoder" in hint for hint in hints)


def test_a_loss_of_pixels_needs_no_feature_network(tmp_path: Path) -> None:
    chain = chain_of(tmp_path)
    config = chain.students["direct"]
    pixels = decoding(chain, config.model_copy(update={"perceptual_weight": 0.0}))
    assert pixels is not None and pixels.features is None
    assert trace_decoding(pixels, designed(chain)).peak(ROWS) > 0
    assert decoding(chain, config.model_copy(update={"perceptual_weight": 0.0, "pixel_weight": 0.0})) is None


def test_every_method_that_decodes_says_so() -> None:
    """A method that uses the teacher's decoder has an `image_loss`."""
    for file in (ROOT / "src/fewstep/methods").glob("*.py"):
        text = file.read_text()
        decodes = re.search(r"backbone\.decode\b", text) is not None
        assert decodes == ("def image_loss" in text), file.name


def test_the_copy_of_a_saved_state_is_counted_on_cpus_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = Design("sd", partial(unet, 16))
    setup = Setup(ROWS, "muon", ema=True, start=True, further=("adamw",), averages=1)
    needed = need(denoiser, setup)
    assert needed.copy == saved(denoiser, setup, denoiser) > 0
    assert needed.total == needed.state + (needed.step or 0) == needed.total_while_saving - needed.copy

    def where(kind: str, room: int) -> Need:
        monkeypatch.setattr(memory, "device", lambda: torch.device(kind))
        monkeypatch.setattr(memory, "available", lambda: room)
        return need(denoiser, setup)

    assert where("cpu", needed.total_while_saving) == needed
    assert where("cpu", needed.total_while_saving - 1) == needed._replace(copy=0)
    assert where("cuda", needed.total_while_saving) == needed._replace(copy=0)
