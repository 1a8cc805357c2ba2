"""Worker processes: order, errors, dead workers, and that none of them is left over."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from itertools import count, islice
from pathlib import Path

import pytest

from fewstep.core.errors import UserError
from fewstep.core.pool import Pool, workers

PATIENCE = 60
"""Seconds after which something that should happen has not."""


# Workers import this module, so their functions are here.


def late(item: tuple[int, float]) -> tuple[int, int]:
    number, seconds = item
    time.sleep(seconds)
    return number, os.getpid()


def deadly(item: tuple[Path, int]) -> str:
    """Ends its process by SIGKILL, as often as the item allows."""
    trace, deaths = item
    died = trace.stat().st_size if trace.exists() else 0
    if died < deaths:
        with trace.open("ab") as file:
            file.write(b".")
        os.kill(os.getpid(), signal.SIGKILL)
    return trace.name


def wrong(item: int) -> int:
    if item == 3:
        raise UserError("item 3 is wrong")
    if item == 5:
        raise ZeroDivisionError("item 5 is a bug")
    return item


class Unreadable:
    """An object that can be pickled, but not restored."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)


def identity_of(item: int) -> int:
    return os.getpid()


def test_results_come_in_order_from_several_processes() -> None:
    items = [(i, 0.2 if i % 3 == 0 else 0.0) for i in range(12)]
    with Pool(3) as pool:
        results = list(pool.each(late, items))
        again = list(pool.each(late, items))
    assert [number for number, _ in results] == list(range(12))
    processes = {process for _, process in results}
    assert 1 < len(processes) <= 3 and os.getpid() not in processes
    assert {process for _, process in again} <= processes, "workers are used again"


@pytest.mark.parametrize(("size", "items"), [(1, 5), (4, 1), (4, 0)])
def test_no_process_is_started_for_one_worker_or_one_item(size: int, items: int) -> None:
    with Pool(size) as pool:
        assert list(pool.each(identity_of, range(items))) == [os.getpid()] * items


def test_an_item_whose_worker_dies_is_tried_once_more(tmp_path: Path) -> None:
    with Pool(2) as pool:
        items = [(tmp_path / str(i), int(i == 2)) for i in range(6)]
        assert list(pool.each(deadly, items)) == [str(i) for i in range(6)]
    assert (tmp_path / "2").stat().st_size == 1


def test_an_item_of_which_two_workers_die_is_named(tmp_path: Path) -> None:
    with Pool(2) as pool:
        items = [(tmp_path / str(i), 2 * int(i == 2)) for i in range(6)]
        results = pool.each(deadly, items, lambda item: f"unit {item[0].name}")
        with pytest.raises(UserError, match=r"^unit 2: 2 processes .* \(by SIGKILL\)") as caught:
            list(results)
    assert "set FEWSTEP_WORKERS below 2" in str(caught.value)


def test_errors_of_users_arrive_as_they_are_and_bugs_with_their_traceback() -> None:
    with Pool(2) as pool:
        with pytest.raises(UserError, match=r"^item 3 is wrong$"):
            list(pool.each(wrong, [1, 2, 3, 4]))
        with pytest.raises(RuntimeError, match=r"test_pool.py(.|\n)*ZeroDivisionError: item 5 is a bug"):
            list(pool.each(wrong, [4, 5]))
        assert list(pool.each(wrong, [6, 7, 8])) == [6, 7, 8], "the pool can be used after an error"


def test_a_job_that_no_worker_can_read_is_an_error() -> None:
    with Pool(2) as pool, pytest.raises(UserError, match=r"^unreadable: 2 processes .*with exit status 1"):
        list(pool.each(late, [Unreadable(), Unreadable()], lambda item: "unreadable"))  # type: ignore[arg-type]


def test_items_are_taken_as_they_are_needed() -> None:
    """There may be more than fit into memory: here they never end."""
    with Pool(2) as pool, closing(pool.each(late, ((i, 0.0) for i in count()))) as results:
        assert [number for number, _ in islice(results, 50)] == list(range(50))


def test_workers_end_with_a_killed_process(tmp_path: Path) -> None:
    """Also while they work."""
    script = tmp_path / "script.py"
    script.write_text(
        "from fewstep.core.pool import Pool\n"
        "from tests.unit.test_pool import late\n"
        "with Pool(2) as pool:\n"
        "    results = pool.each(late, [(0, 0.0), (1, 600.0), (2, 600.0), (3, 600.0)])\n"
        "    next(results)\n"
        "    print(*(worker.process.pid for worker in pool._workers), flush=True)\n"
        "    next(results)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        alive = [is_alive(pid) for pid in pids]
        process.kill()
    assert alive == [True, True]
    deadline = time.monotonic() + PATIENCE
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_are_the_cores_or_what_the_machine_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWSTEP_WORKERS", raising=False)
    assert workers() == len(os.sched_getaffinity(0))
    with monkeypatch.context() as macos:
        macos.delattr(os, "sched_getaffinity")
        assert workers() == os.cpu_count()
    monkeypatch.setenv("FEWSTEP_WORKERS", "3")
    assert workers() == 3
    monkeypatch.setenv("FEWSTEP_WORKERS", "0")
    with pytest.raises(UserError, match="FEWSTEP_WORKERS=0: expected a number, 1 or more"):
        workers()
