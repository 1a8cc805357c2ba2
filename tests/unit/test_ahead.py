"""Batches prepared in a thread, and values that are read some steps later: the same results and errors."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.data.prompted import PromptedFile, save_prompted
from fewstep.data.stream import Stream
from fewstep.training.checkpoint import load_state, states
from fewstep.training.loop import LOG_EVERY, train
from fewstep.training.method import Rows
from tests.unit.test_training_parts import Fit


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "3600")


class Recorded(Fit):
    """Records the steps of its batches and the thread that prepared them."""

    def __init__(self) -> None:
        super().__init__("adamw")
        self.prepared: list[int] = []
        self.threads: set[str] = set()

    def batch(self, rows: Rows) -> Tensor:
        self.prepared.append(rows.step)
        self.threads.add(threading.current_thread().name)
        return super().batch(rows)


@pytest.mark.parametrize("micro", ["64", "24"])
def test_results_do_not_depend_on_how_many_batches_are_ahead(
    micro: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_MICRO_BATCH", micro)
    trained = []
    for count in ("0", "1", "5"):
        monkeypatch.setenv("FEWSTEP_AHEAD", count)
        method = Recorded()
        train(method, "fit", 0, tmp_path / count)
        trained.append(method)
        assert sorted(set(method.prepared)) == [*range(40)], "none beyond the last step"
        assert len(method.threads) == 1
        assert (threading.main_thread().name in method.threads) == (count == "0")
    assert all(torch.equal(method.weight, trained[0].weight) for method in trained)


class Overlapping(Fit):
    """Each step but the last waits until the next one's batch is being prepared."""

    def __init__(self) -> None:
        super().__init__("adamw")
        self.begun = [threading.Event() for _ in range(self.training.steps)]

    def batch(self, rows: Rows) -> Tensor:
        self.begun[rows.step].set()
        return super().batch(rows)

    def losses(self, group: str, batch: Tensor, step: int) -> dict[str, Tensor]:
        assert all(event.wait(60) for event in self.begun[step + 1 : step + 2]), "no batch was ahead"
        return super().losses(group, batch, step)


def test_the_next_batch_is_prepared_during_a_step(tmp_path: Path) -> None:
    train(Overlapping(), "fit", 0, tmp_path)


class FromDisk(Fit):
    """Reads its rows from two files; the step at which the second one is needed is 20."""

    def __init__(self, files: list[Path]) -> None:
        super().__init__("adamw")
        self.done = 0
        rows = [64 * 20] * 2
        self.stream = Stream(rows, lambda number: PromptedFile(files[number]), Key(0, "order"))

    def batch(self, rows: Rows) -> Tensor:
        return torch.stack([row.latent for row in self.stream.rows(rows.positions)])

    def losses(self, group: str, batch: Tensor, step: int) -> dict[str, Tensor]:
        self.done = step + 1
        return super().losses(group, batch, step)


def test_a_corrupt_shard_ends_the_training_at_its_step(tmp_path: Path) -> None:
    files = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    for file in files:
        prompts = torch.zeros(64 * 20, dtype=torch.int64)
        save_prompted(file, torch.rand(64 * 20, 96), prompts, {}, "float32", {})
    second = int(Key(0, "order/shards").permutation(0, 2)[1])
    files[second].write_bytes(files[second].read_bytes()[:1000])
    method = FromDisk(files)
    with pytest.raises(UserError, match=f"{files[second]}: damaged"):
        train(method, "fit", 0, tmp_path)
    assert method.done == 20, "the steps before it are done"


class Broken(Fit):
    """Its loss is not a number at step 15; a later step fails because of the weights."""

    def __init__(self, fails: bool) -> None:
        super().__init__("adamw")
        self.fails = fails

    def batch(self, rows: Rows) -> Tensor:
        return super().batch(rows) * (float("nan") if rows.step == 15 else 1)

    def losses(self, group: str, batch: Tensor, step: int) -> dict[str, Tensor]:
        if self.fails and step > 15:
            raise ValueError("a network that cannot stand such weights")
        return super().losses(group, batch, step)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("every", ["3600", "0", "0.001"])
def test_a_loss_that_is_no_number_is_named_with_its_step_and_never_saved(
    every: str, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 15 % LOG_EVERY, "no step at which values are read in any case"
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", every)
    monkeypatch.setenv("FEWSTEP_SAVE_SHARE", "1")
    with pytest.raises(UserError, match="fit loss became nan at step 15, on samples 960 to 1023"):
        train(Broken(fails), "fit", 0, tmp_path)
    failed = json.loads((tmp_path / "fit/failed_batch.json").read_text())
    assert failed["step"] == 15 and failed["positions"] == [*range(960, 1024)]
    kept = states(tmp_path / "fit")
    assert kept or every == "3600", "saves before a preview may be earlier"
    if kept:
        step, tensors = load_state(tmp_path / "fit") or (0, {})
        assert step <= 15 and all(tensor.isfinite().all() for tensor in tensors.values())
        assert step == 15 or every != "0"


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts values that the host reads from a tensor of one element."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_host_reads_values_only_where_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lists, tolist = list[Tensor](), Tensor.tolist

    def counted(tensor: Tensor) -> Any:
        lists.append(tensor)
        return tolist(tensor)

    monkeypatch.setattr(Tensor, "tolist", counted)
    method = Fit("adamw")
    method.training = method.training.model_copy(update={"steps": 200})
    with Reads() as reads:  # type: ignore[no-untyped-call]
        train(method, "fit", 0, tmp_path)
    lines = re.findall(r"\d+/200 .*fit loss \S+", capsys.readouterr().out)
    assert len(lines) == 20 and reads.count == 0
    # Steps that trackers show, steps of a progress line, and the saves.
    assert len(lists) <= 200 / LOG_EVERY + 20 + 2
