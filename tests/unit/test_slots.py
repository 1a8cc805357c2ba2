"""Leases of GPUs and CPU slots: never held twice, free as soon as the last holder is gone."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from flows.slots import Stopped, gpus, leased


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, and leases of its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8a")


def test_the_visible_gpus_are_leased_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus() == ["4", "GPU-8a"]
    with leased(1, threading.Event()) as one, leased(1, threading.Event()) as other:
        seen = [lease.environment["CUDA_VISIBLE_DEVICES"] for lease in (one, other)]
    assert sorted(seen) == ["4", "GPU-8a"]
    with leased(2, threading.Event()) as both:
        assert both.environment["CUDA_VISIBLE_DEVICES"] == "4,GPU-8a"
    with leased(7, threading.Event()) as all_there_are:
        assert all_there_are.environment["CUDA_VISIBLE_DEVICES"] == "4,GPU-8a"


def test_what_needs_none_sees_none() -> None:
    with leased(0, threading.Event()) as lease:
        assert lease.environment == {"CUDA_VISIBLE_DEVICES": ""}


def test_a_host_without_gpus_gives_its_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("FEWSTEP_SLOTS", "2")
    stop = threading.Event()
    with leased(1, stop) as one, leased(1, stop) as other:
        assert one.environment == other.environment == {}
        threading.Timer(0.3, stop.set).start()
        with pytest.raises(Stopped), leased(1, stop):
            pass


def test_many_who_wait_for_both_all_get_them_in_turn() -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with leased(2, threading.Event()):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=600)
    assert most == 1 and not any(worker.is_alive() for worker in workers)


def test_the_child_holds_the_lease_until_it_is_dead(tmp_path: Path) -> None:
    with leased(2, threading.Event()) as lease:
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(3600)"], pass_fds=lease.descriptors
        )
    file = next(tmp_path.glob("fewstep-*/gpu-4.lock"))
    with file.open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
