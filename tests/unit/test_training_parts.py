"""Optimiser, averages, rates and keyed randomness."""

import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

from fewstep.config.training import TrainingConfig
from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.training import saving
from fewstep.training.ema import Ema
from fewstep.training.loop import train
from fewstep.training.method import Group, Method, Rows
from fewstep.training.muon import Muon, orthogonal
from fewstep.training.optimization import learning_rate, optimizers_of

Decay = Literal["constant", "linear", "cosine"]


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_orthogonalised_update_keeps_the_directions_and_evens_their_sizes(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = orthogonal(torch.stack([torch.zeros_like(matrix), matrix]))[1]
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    spread = torch.diagonal(u.T @ update @ v.T)
    assert torch.linalg.svdvals(update).max() < 1.3
    assert spread.min() > 0.3, "every direction of the matrix is kept, with its sign"
    assert torch.allclose(u @ torch.diag(spread) @ v, update, atol=0.05)


def test_muon_solves_a_convolutional_regression() -> None:
    torch.manual_seed(0)
    target, learner = (torch.nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
    optimizer = Muon(learner.parameters(), lr=0.02)
    x = torch.randn(64, 8, 6, 6)
    losses = []
    for step in range(200):
        loss = (learner(x) - target(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 200)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_rate_is_the_usual_one_and_no_step_is_wasted(decay: Decay) -> None:
    """As transformers schedule rates, but that the first warm-up step is not at 0 either."""
    steps, warmup, peak = 100, 10, 2.0
    training = TrainingConfig(steps=steps, batch_size=1, learning_rate=peak, warmup=warmup, decay=decay)
    rates = [learning_rate(training, step, steps) for step in range(steps)]
    assert rates[:warmup] == pytest.approx([peak * (k + 1) / warmup for k in range(warmup)])
    assert max(rates) == rates[warmup] == peak and min(rates) > 0
    name = decay if decay != "constant" else "constant_with_warmup"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps).lr_lambdas[0]
    assert rates[warmup:] == pytest.approx([peak * theirs(step) for step in range(warmup, steps)])
    assert learning_rate(training, steps, steps) == pytest.approx(peak if decay == "constant" else 0.0)
    if decay == "linear":
        assert rates[-1] == pytest.approx(peak / (steps - warmup))


def test_average_forgets_its_start_as_its_decays_say_and_refuses_other_weights() -> None:
    """Closed form: of the start `prod d_k` is left, `d_k = min(0.99, (1 + k) / (10 + k))`."""
    ema = Ema({"w": torch.zeros(3)}, decay=0.99)
    left = 1.0
    for k in range(1200):
        ema.update({"w": torch.ones(3)})
        left *= min(0.99, (1 + k) / (10 + k))
        if k in (0, 5, 300, 1199):
            assert torch.allclose(1 - ema.average["w"], torch.full((3,), left), atol=1e-6), k
    with pytest.raises(AssertionError):
        ema.update({"v": torch.ones(3)})


def test_draws_depend_on_seed_stream_and_index_alone() -> None:
    key = Key(0, "a")
    assert np.array_equal(key.normal(range(10), (3,))[4:7], key.normal([4, 5, 6], (3,)))
    assert not np.array_equal(key.normal([0], (3,)), Key(0, "b").normal([0], (3,)))
    assert not np.array_equal(key.normal([0], (3,)), Key(1, "a").normal([0], (3,)))
    many = key.normal(range(4000), (16,))
    assert abs(many.mean()) < 0.01
    assert abs(many.std() - 1) < 0.01


def test_stratified_draws_cover_each_batch_and_split_over_processes() -> None:
    key = Key(0, "t")
    batch = key.stratified(range(64, 128), 64)
    assert np.array_equal(np.sort((batch * 64).astype(int)), np.arange(64))
    assert np.array_equal(batch[1::2], key.stratified(range(65, 128, 2), 64))
    assert not np.array_equal(batch, key.stratified(range(64), 64))


class Fit(Method):
    """A linear layer to a random one; stops itself at a step, once."""

    def __init__(self, optimizer: str, stop: int | None = None) -> None:
        torch.manual_seed(0)
        layer, self.goal, self.stop = torch.nn.Linear(96, 96), torch.nn.Linear(96, 96), stop
        self.net = torch.nn.Sequential(torch.nn.Sequential(layer))  # a list of blocks, for Muon
        self.weight = layer.weight
        training = {"steps": 40, "batch_size": 64, "learning_rate": 0.01, "optimizer": optimizer}
        self.training = TrainingConfig.model_validate(training)
        self.groups = {"fit": Group({"net": self.net}, self.training)}

    def batch(self, rows: Rows) -> torch.Tensor:
        if rows.step == self.stop:
            raise KeyboardInterrupt
        return torch.from_numpy(Key(0, "x").normal(rows.positions, (96,)))

    def losses(self, group: str, batch: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            wanted = self.goal(batch)
        return {"square": (self.net(batch) - wanted).square().mean()}


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "muon"])
def test_each_optimizer_learns_and_resumes_where_it_was(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "0")
    if optimizer == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    whole, torn, resumed = Fit(optimizer), Fit(optimizer, stop=17), Fit(optimizer)
    before = (whole.weight - whole.goal.weight).norm().item()
    train(whole, "fit", 0, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(torn, "fit", 0, tmp_path / "torn")
    kept = load_file(next((tmp_path / "torn").glob("fit/step-*/state.safetensors")))
    assert any(value.dtype == torch.uint8 for value in kept.values()) == (optimizer == "adamw_8bit")
    assert any(key.endswith("weight/momentum") for key in kept) == (optimizer == "muon")
    train(resumed, "fit", 0, tmp_path / "torn")
    assert torch.equal(whole.weight, resumed.weight)
    assert (whole.weight - whole.goal.weight).norm().item() < 0.7 * before


class Shown(Fit):
    """Records the steps after which its images are drawn; is ended while it draws the first ones."""

    def __init__(self, ends: bool = False) -> None:
        super().__init__("adamw")
        self.ends, self.step, self.seen = ends, 0, list[int]()

    def losses(self, group: str, batch: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        self.step = step + 1
        return super().losses(group, batch, step)

    def preview(self) -> torch.Tensor:
        self.seen.append(self.step)
        if self.ends:
            raise KeyboardInterrupt
        return torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize("share", ["1", "0.001"], ids=["saved before", "not saved before"])
def test_a_preview_that_ended_a_training_is_not_repeated(
    share: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have filled the memory. The state is saved before it, where the share permits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "tensorboard")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "3600")
    monkeypatch.setenv("FEWSTEP_SAVE_SHARE", share)
    monkeypatch.setattr(saving, "SPEED", 1e7)
    whole, ended, resumed = Shown(), Shown(ends=True), Shown()
    train(whole, "fit", 0, Path("whole"))
    with pytest.raises(KeyboardInterrupt):
        train(ended, "fit", 0, Path("torn"))
    saved = [folder.name for folder in Path("torn/fit").glob("step-*")]
    assert saved == (["step-00000008"] if share == "1" else [])
    train(resumed, "fit", 0, Path("torn"))
    assert whole.seen == [8, 16, 24, 32, 40]
    assert ended.seen == whole.seen[:1] and resumed.seen == whole.seen[1:]
    assert torch.equal(whole.weight, resumed.weight)


def test_without_trackers_nothing_is_drawn_for_them_and_nothing_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "3600")
    shown = Shown(ends=True)
    train(shown, "fit", 0, tmp_path)
    assert shown.seen == [] and [folder.name for folder in tmp_path.glob("fit/*")] == ["step-00000040"]
    assert not [warning for warning in recwarn if "log_with" in str(warning.message)]


def test_an_optimizer_that_is_not_installed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match="adamw_8bit: `pip install bitsandbytes` first"):
        optimizers_of({"w": torch.nn.Parameter(torch.zeros(1))}, Fit("adamw_8bit").training)
