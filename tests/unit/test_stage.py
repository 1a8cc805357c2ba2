"""How a stage ends: its exit status and what it says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fewstep.errors import UserError
from fewstep.stage import run


def no_memory_on_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")


def no_memory_on_the_host() -> None:
    torch.empty(1 << 50)


def wrong() -> None:
    raise UserError("params.yaml: seed is missing")


@pytest.mark.parametrize(
    ("main", "said"),
    [
        (no_memory_on_the_gpu, "error: the device is out of memory: CUDA out of memory"),
        (no_memory_on_the_host, "error: the device is out of memory:"),
        (wrong, "error: params.yaml: seed is missing"),
    ],
)
def test_what_a_person_can_mend_is_one_line(
    main: Callable[[], None],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["reflow.py"])
    with pytest.raises(SystemExit) as ended:
        run(main, writes=Path("artifacts/models/reflow"))
    found = capsys.readouterr()
    assert ended.value.code == 1
    assert found.err.startswith(said) and found.err.count("\n") == 1
    assert ("FEWSTEP_MICRO_BATCH" in found.err) == ("memory" in said)
    assert found.out == "reflow: writes artifacts/models/reflow\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["reflow.py"])

    def bug() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(bug, writes=Path("artifacts"))
