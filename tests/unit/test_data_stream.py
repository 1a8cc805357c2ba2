"""The keyed order: every epoch is a permutation, and a position's row depends on nothing else."""

from collections import Counter
from pathlib import Path

import pytest

from fewstep.core.errors import UserError
from fewstep.core.files import write_json
from fewstep.core.keyed import Key
from fewstep.data.shards import open_images
from fewstep.data.stream import KEPT, Stream

COUNTS = (5, 1, 0, 7, 3)
TOTAL = sum(COUNTS)
ROWS = [f"{shard}/{row}" for shard, count in enumerate(COUNTS) for row in range(count)]


def load(shard: int) -> list[str]:
    return [f"{shard}/{row}" for row in range(COUNTS[shard])]


def stream(seed: int = 0) -> Stream[str]:
    return Stream(COUNTS, load, Key(seed, "order"))


def test_each_epoch_visits_each_row_exactly_once() -> None:
    for epoch in range(5):
        assert sorted(stream().rows(range(epoch * TOTAL, (epoch + 1) * TOTAL))) == sorted(ROWS)


def test_batching_seeking_and_order_of_calls_change_nothing() -> None:
    whole = stream().rows(range(3 * TOTAL))
    one = stream()
    assert [row for p in range(3 * TOTAL) for row in one.rows([p])] == whole
    assert stream().rows(range(20, 40)) == whole[20:40], "a resume seeks"
    assert stream().rows([30, 2, 30]) == [whole[30], whole[2], whole[30]]


def test_epochs_and_keys_order_differently() -> None:
    rows = stream().rows(range(2 * TOTAL))
    assert rows[:TOTAL] != rows[TOTAL:]
    assert stream(seed=1).rows(range(TOTAL)) != rows[:TOTAL]


def test_rows_are_permuted_inside_their_shard() -> None:
    orders = {
        tuple(row for row in stream().rows(range(e * TOTAL, (e + 1) * TOTAL)) if row.startswith("3/"))
        for e in range(6)
    }
    assert len(orders) == 6


def test_an_epoch_in_order_loads_each_shard_once() -> None:
    loads: Counter[int] = Counter()

    def counted(shard: int) -> list[str]:
        loads[shard] += 1
        return load(shard)

    rows = Stream(COUNTS, counted, Key(0, "order"))
    for start in range(0, TOTAL, 3):
        rows.rows(range(start, min(start + 3, TOTAL)))
    assert set(loads.values()) == {1}
    assert len(loads) > KEPT


@pytest.mark.parametrize("counts", [(), (0, 0)])
def test_nothing_to_stream(counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Stream(counts, load, Key(0, "order"))


def test_missing_split_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "index.json", {"resolution": 8, "labels": None, "splits": {"train": []}})
    with pytest.raises(UserError, match="has no 'heldout' images"):
        open_images(tmp_path, "heldout", Key(0, "order"))
