"""Several groups of networks in one training: whose gradients, whose weights, whose averages."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fewstep.config.training import OptimizerConfig, TrainingConfig
from fewstep.training.explosion import RESTING, SETTLED, ExplosionGuard
from fewstep.training.loop import advance, train
from fewstep.training.method import Group, Method, Rows
from fewstep.training.saving import Saver
from fewstep.training.state import State

GENERATOR, CRITIC = 1.5, -0.5
"""The two weights at the beginning."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "0")


def scalar(value: float) -> nn.Linear:
    """A network of one weight: `value x`."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, value)
    return net


class Duel(Method):
    """`L_g = 2 g d`, `L_d = (d - 3)^2 / 2 + g d`, at x = 1; every `every`-th step updates the generator.

    Gradients: `dL_g / dg = 2 d`, `dL_d / dd = d - 3 + g`. The losses also have gradients on the other
    network, 2 g and d, which must reach nobody.
    """

    def __init__(self, every: int = 1, stop: int | None = None, decay: str = "constant") -> None:
        self.every, self.stop = every, stop
        self.generator, self.critic = scalar(GENERATOR), scalar(CRITIC)
        settings = {"learning_rate": 0.1, "clip": 1e9, "decay": decay}
        self.training = TrainingConfig.model_validate(settings | {"steps": 12, "batch_size": 2, "ema": 0.9})
        self.groups = {
            "generator": Group({"net": self.generator}, self.training, {"slow": 0.999}),
            "critic": Group({"net": self.critic}, OptimizerConfig.model_validate(settings)),
        }

    def schedule(self, step: int) -> Sequence[str]:
        return ("generator", "critic") if step % self.every == 0 else ("critic",)

    def batch(self, rows: Rows) -> Tensor:
        if rows.step == self.stop:
            raise KeyboardInterrupt
        return torch.ones(len(rows.positions), 1)

    def losses(self, group: str, batch: Tensor, step: int) -> dict[str, Tensor]:
        g, d = self.generator(batch), self.critic(batch)
        if group == "generator":
            return {"both": 2 * (g * d).mean()}
        return {"square": (d - 3).square().mean() / 2, "both": (g * d).mean()}


def value(net: nn.Linear) -> float:
    return float(net.weight.detach())


@pytest.mark.parametrize("micro", ["1", "2"])
def test_each_group_gets_the_gradient_of_its_own_loss(
    micro: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_MICRO_BATCH", micro)
    duel = Duel()
    state = State(duel, tmp_path)
    for _ in range(3):
        g, d = value(duel.generator), value(duel.critic)
        _, logged = advance(state, "duel", 0, 2)
        assert logged["generator/gradient_norm"] == pytest.approx(abs(2 * d), rel=1e-6)
        # The generator has moved when the critic's turn comes.
        moved = value(duel.generator)
        assert moved != g
        assert logged["critic/gradient_norm"] == pytest.approx(abs(d - 3 + moved), rel=1e-6)


def test_a_group_that_is_not_scheduled_keeps_its_bytes(tmp_path: Path) -> None:
    duel = Duel(every=4)
    state = State(duel, tmp_path)
    moved = []
    for _ in range(8):
        before, critic = duel.generator.weight.clone(), duel.critic.weight.clone()
        average = state.groups["generator"].averages["slow"].average["net/weight"].clone()
        advance(state, "duel", 0, 2)
        moved.append(not torch.equal(before, duel.generator.weight))
        assert not torch.equal(critic, duel.critic.weight)
        still = torch.equal(average, state.groups["generator"].averages["slow"].average["net/weight"])
        assert still != moved[-1]
        assert duel.generator.weight.grad is None and duel.critic.weight.grad is None
    assert moved == [True, False, False, False] * 2
    assert state.groups["generator"].averages["slow"].updates == 2


def test_a_group_with_fewer_updates_has_a_positive_rate_to_the_end(tmp_path: Path) -> None:
    duel = Duel(every=5, decay="linear")
    state = State(duel, tmp_path)
    rates = [advance(state, "duel", 0, 2)[1] for _ in range(duel.training.steps)]
    expected = [0.1 * (1 - step / 12) for step in range(12)]
    assert [logged["critic/learning_rate"] for logged in rates] == pytest.approx(expected)
    assert rates[10]["generator/learning_rate"] == pytest.approx(expected[10])


def test_averages_count_their_own_updates(tmp_path: Path) -> None:
    """Closed form: after one update from g_0 to g_1 the ramp gives `a_1 = 0.1 g_0 + 0.9 g_1`."""
    duel = Duel(every=3)
    state = State(duel, tmp_path)
    values = [value(duel.generator)]
    for _ in range(4):
        advance(state, "duel", 0, 2)
        values.append(value(duel.generator))
    g_0, g_1, g_2 = values[0], values[1], values[4]
    first = 0.1 * g_0 + 0.9 * g_1
    expected = 2 / 11 * first + 9 / 11 * g_2
    for name in ("ema", "slow"):
        average = state.groups["generator"].averages[name].average["net/weight"].item()
        assert average == pytest.approx(expected, rel=1e-6)
    (slow,) = duel.groups["generator"].averages["slow"].values()
    assert slow(torch.ones(1, 1)).item() == pytest.approx(expected, rel=1e-6)
    assert not slow.training and not any(weight.requires_grad for weight in slow.parameters())


def test_an_average_shares_frozen_weights(tmp_path: Path) -> None:
    duel = Duel()
    net = nn.Sequential(nn.Linear(1, 4).requires_grad_(False), nn.Linear(4, 1))
    duel.groups = {"generator": Group({"net": net}, duel.training, {"slow": 0.9})}
    State(duel, tmp_path)
    copy = duel.groups["generator"].averages["slow"]["net"]
    assert isinstance(copy, nn.Sequential)
    assert copy[0].weight is net[0].weight and copy[1].weight is not net[1].weight


def test_an_average_of_the_methods_own_is_not_the_kept_one() -> None:
    with pytest.raises(ValueError, match="choose another name"):
        Group({}, Duel().training, {"ema": 0.9})


def test_killed_at_any_step_it_ends_as_it_would_have(tmp_path: Path) -> None:
    whole = Duel(every=3)
    train(whole, "duel", 0, tmp_path / "whole")
    for stop in (1, 4, 11):
        with pytest.raises(KeyboardInterrupt):
            train(Duel(every=3, stop=stop), "duel", 0, tmp_path / f"torn-{stop}")
        resumed = Duel(every=3)
        train(resumed, "duel", 0, tmp_path / f"torn-{stop}")
        assert torch.equal(whole.generator.weight, resumed.generator.weight)
        assert torch.equal(whole.critic.weight, resumed.critic.weight)
        for (name, ours), (_, theirs) in zip(
            whole.groups["generator"].averages["slow"]["net"].named_parameters(),
            resumed.groups["generator"].averages["slow"]["net"].named_parameters(),
            strict=True,
        ):
            assert torch.equal(ours, theirs), name


class Toggled(Duel):
    """Freezes its generator in the middle of a loss, as some do for a phase."""

    def losses(self, group: str, batch: Tensor, step: int) -> dict[str, Tensor]:
        self.generator.requires_grad_(group == "generator" and step < 2)
        return super().losses(group, batch, step) | {"regular": self.critic.weight.square().mean()}


def test_a_frozen_weight_stays_in_the_saved_state(tmp_path: Path) -> None:
    toggled = Toggled()
    state = State(toggled, tmp_path)
    before = state.tensors().keys()
    advance(state, "duel", 0, 2)
    after = state.tensors().keys()
    assert before <= after and "generator/weights/net/weight" in after
    with Saver(state) as saver:
        saver.save()
    resumed = State(Toggled(), tmp_path)
    resumed.resume()
    assert value(resumed.method.generator) == value(toggled.generator)  # type: ignore[attr-defined]


def feed(guard: ExplosionGuard, values: Sequence[float]) -> list[bool]:
    return [guard.accepts(each) for each in values]


def test_a_loss_that_rests_at_zero_may_return_to_its_size() -> None:
    guard = ExplosionGuard()
    assert all(feed(guard, [1.0] * 2 * SETTLED + [0.0] * 5000 + [2.0, 0.0, 1.0]))
    assert not guard.accepts(1001 * RESTING)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_explosion_stops_a_training_whatever_the_sign(sign: float) -> None:
    guard = ExplosionGuard()
    assert all(feed(guard, [sign * 1e-3] * 2 * SETTLED))
    assert guard.accepts(sign * 0.9) and not guard.accepts(sign * 100)
    assert not any(feed(ExplosionGuard(), [math.nan, math.inf, -math.inf]))


def test_the_first_values_are_not_judged() -> None:
    assert all(feed(ExplosionGuard(), [1e-6] * SETTLED + [1e3]))
