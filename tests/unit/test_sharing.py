"""How processes share batches and tensors, and what they refuse; none is started here."""

from collections.abc import Sequence
from itertools import chain
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from torch import nn

from fewstep.config.training import TrainingConfig
from fewstep.core.errors import UserError
from fewstep.core.processes import require
from fewstep.training import ahead, optimization, sharding


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("most", ["", "1", "2", "3"])
def test_processes_have_equally_many_micro_batches_and_each_row_counts_once(
    processes: int, most: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_MICRO_BATCH", most)
    for batch_size in range(processes, 12):
        positions = range(100, 100 + batch_size)
        parts: list[list[tuple[Sequence[int], float]]] = []
        for rank in range(processes):
            state = SimpleNamespace(process_index=rank, num_processes=processes)
            monkeypatch.setattr("fewstep.core.processes.process", lambda state=state: state)
            monkeypatch.setattr(ahead, "process", lambda state=state: state)
            parts.append([*ahead.portions(positions)])
        assert len({len(of_rank) for of_rank in parts}) == 1
        weights = dict.fromkeys(positions, 0.0)
        for few, share in chain.from_iterable(parts):
            assert 0 < len(few) <= int(most or batch_size)
            for row in few:
                weights[row] += share / len(few)
        assert weights == pytest.approx(dict.fromkeys(positions, 1 / batch_size))


def test_what_processes_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="DEEPSPEED, which is not offered"):
        require(DistributedType.DEEPSPEED, 2, 16)
    with pytest.raises(UserError, match="batch_size = 3 has no sample for each of 4 processes"):
        require(DistributedType.MULTI_GPU, 4, 3)
    require(DistributedType.MULTI_GPU, 3, 4)
    require(DistributedType.FSDP, 3, 4)


@pytest.mark.parametrize("setting", sharding.REFUSED)
def test_what_shards_cannot_do_is_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "is_wanted", lambda: True)
    monkeypatch.setenv(setting, "true")
    with pytest.raises(UserError, match=f"{setting} is set, which is not offered for networks in shards"):
        sharding.shard(nn.Linear(1, 1))


def test_small_tensors_share_a_collective_and_a_large_one_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sharding, "COLLECTIVE", 10)
    sizes = {"a": 4, "b": 6, "c": 1, "d": 20, "e": 2}
    assert [*sharding.chunks(sizes)] == [["a", "b"], ["c"], ["d"], ["e"]]
    assert [*sharding.chunks({})] == []


def test_averages_of_a_byte_are_not_for_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimization, "is_wanted", lambda: True)
    training = TrainingConfig(steps=1, batch_size=2, learning_rate=1e-3, optimizer="adamw_8bit")
    with pytest.raises(UserError, match="adamw_8bit: not for networks in shards"):
        optimization.adamw([], training)
