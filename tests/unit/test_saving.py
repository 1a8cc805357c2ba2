"""Saving in the background: when, what is left after a kill, and errors of the writing thread."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from fewstep.core.errors import UserError
from fewstep.training.checkpoint import load_state, save_state, states
from fewstep.training.loop import advance, train
from fewstep.training.saving import SPEED, Saver, interval, unshared
from fewstep.training.state import State
from tests.began import BEGAN_IN, PYTHON
from tests.unit.test_training_parts import Fit

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/large_state.py"
ALWAYS = {"FEWSTEP_SAVE_EVERY_SECONDS": "0.001", "FEWSTEP_SAVE_SHARE": "1"}
"""A state is being written during nearly every step."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    for name in ("SAVE_EVERY_SECONDS", "SAVE_SHARE"):
        monkeypatch.delenv(f"FEWSTEP_{name}", raising=False)


def begin(folder: Path, prefix: tuple[str, ...] = (), **switches: str) -> subprocess.Popen[str]:
    """The training of tests/large_state.py, started in `folder`."""
    folder.mkdir(exist_ok=True)
    ours = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "FEWSTEP_TRACKERS": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'src'}",
    }
    return subprocess.Popen(
        [*prefix, PYTHON, SCRIPT],
        cwd=folder,
        env={**BEGAN_IN, **ours, **ALWAYS, **switches},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended_while_writing(folder: Path, number: int) -> tuple[str, str]:
    """Start the training; send the signal when a second state is being written. Returns its output."""
    process, place = begin(folder), folder / "states/large"
    while process.poll() is None:
        if states(place) and [*place.glob(".step-*.partial/state.safetensors")]:
            process.send_signal(number)
            break
        time.sleep(0.001)
    return process.communicate(timeout=600)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the training that nothing ends."""
    folder = tmp_path_factory.mktemp("whole")
    process = begin(folder, FEWSTEP_SAVE_EVERY_SECONDS="3600")
    assert process.wait(600) == 0
    return (folder / "weights.safetensors").read_bytes()


def test_a_kill_during_a_write_leaves_the_state_before(whole: bytes, tmp_path: Path) -> None:
    for attempt in range(10):
        folder = tmp_path / f"{attempt}"
        ended_while_writing(folder, signal.SIGKILL)
        partial = [*(folder / "states/large").glob(".step-*.partial")]
        if partial:
            break
    else:
        pytest.fail("no kill arrived while a state was being written")
    (kept,) = states(folder / "states/large")
    half_written = int(re.findall(r"\d+", partial[0].name)[0])
    step, tensors = load_state(folder / "states/large") or (0, {})
    assert 0 < step < half_written and kept.name == f"step-{step:08d}"
    assert tensors["large/weights/net/weight"].isfinite().all()
    resumed = begin(folder)
    output, errors = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, errors
    assert f"resumes at step {step}" in output
    assert [state.name for state in (folder / "states/large").iterdir()] == ["step-00000040"]
    assert (folder / "weights.safetensors").read_bytes() == whole


def test_an_interrupt_waits_for_the_write_and_saves_its_own_step(whole: bytes, tmp_path: Path) -> None:
    _, errors = ended_while_writing(tmp_path, signal.SIGTERM)
    assert "interrupted; run `dvc repro` again" in errors
    (kept,) = (tmp_path / "states/large").iterdir()
    resumed = begin(tmp_path)
    output, errors = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, errors
    assert f"resumes at step {int(kept.name.removeprefix('step-'))}" in output
    assert (tmp_path / "weights.safetensors").read_bytes() == whole


def test_a_disk_that_fills_up_while_a_state_is_written_ends_the_training(tmp_path: Path) -> None:
    """A real file system that holds one state of 48 MiB, and not two."""
    disk = ("unshare", "--map-root-user", "--mount", "sh", "-c")
    mount = "mkdir -p states && mount -t tmpfs -o size=70m states states"
    allowed = shutil.which("unshare") and subprocess.run([*disk, mount], cwd=tmp_path, capture_output=True)
    if not allowed or allowed.returncode != 0:
        pytest.skip("needs the right to mount a file system")
    process = begin(tmp_path, (*disk, f'{mount} && "$@"; status=$?; ls states/large; exit $status', "-"))
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert re.search(r"error: states/large/step-\d+: the disk is full; free some space", errors), errors
    assert "Traceback" not in errors
    assert re.findall(r"^\.?step.*$", output, re.MULTILINE)[-1].startswith("step-"), "the first state is kept"
    assert not (tmp_path / "weights.safetensors").exists()


def test_an_error_of_the_writer_is_raised_in_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the last save, after which no step follows."""
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "3600")
    (tmp_path / "fit").write_text("a file in the place of the folder")
    with pytest.raises(OSError, match="fit"):
        train(Fit("adamw"), "fit", 0, tmp_path)


def test_an_error_of_the_writer_does_not_hide_the_trainings_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = State(Fit("adamw"), tmp_path / "fit")
    (tmp_path / "fit").write_text("a file in the place of the folder")
    with pytest.raises(KeyboardInterrupt), Saver(state) as saver:
        saver.save()
        raise KeyboardInterrupt
    assert "warning: the last state was not saved" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_without_room_for_a_copy_the_state_itself_is_written_before_the_next_step(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "3600")
    memory = psutil.virtual_memory()._replace(available=0)
    for folder in ("copied", "in place"):
        state = State(Fit(optimizer), tmp_path / folder)
        for _ in range(2):
            advance(state, "fit", 0, 4)
        with Saver(state) as saver:
            saver.save()
            if folder == "in place":
                assert load_state(tmp_path / folder), "it is written when the call returns"
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        monkeypatch.setattr(State, "snapshot", None)
    (step, copied), (again, written) = (
        load_state(tmp_path / folder) or (0, {}) for folder in ("copied", "in place")
    )
    assert step == again == 2 and copied.keys() == written.keys()
    assert all(torch.equal(value, written[name]) for name, value in copied.items())


def test_tensors_that_share_memory_are_copied_and_others_are_not(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    tensors = {"weight": weight, "tied": weight, "view": weight[:2], "other": torch.ones(3)}
    written = unshared(tensors)
    kept = [name for name, value in written.items() if value.data_ptr() == tensors[name].data_ptr()]
    assert kept == ["weight", "other"]
    save_state(tmp_path, 1, written)  # safetensors refuses tensors that share memory
    _, read = load_state(tmp_path) or (0, {})
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


def test_the_interval_follows_the_duration_of_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interval(11.0) == pytest.approx(550) and interval(0.1) == 30
    monkeypatch.setenv("FEWSTEP_SAVE_SHARE", "0.1")
    assert interval(11.0) == pytest.approx(110)
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "0")
    assert interval(11.0) == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SAVE_SHARE", "2", "expected a number, from 0.001 to 1"),
        ("SAVE_SHARE", "0", "expected a number, from 0.001 to 1"),
        ("SAVE_EVERY_SECONDS", "soon", "expected a number, 0 or more"),
        ("SAVE_EVERY_SECONDS", "-1", "expected a number, 0 or more"),
    ],
)
def test_an_invalid_switch_is_named(
    name: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FEWSTEP_{name}", value)
    with pytest.raises(UserError, match=f"FEWSTEP_{name}={value}: {message}"):
        train(Fit("adamw"), "fit", 0, tmp_path)


def test_a_save_is_due_after_its_share_of_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = State(Fit("adamw"), tmp_path / "fit")
    with Saver(state) as saver:
        assert not saver.due()
        assert state.size == 4 * 96 * 97 + 16, "weights, and the scale of gradients"
        assert saver.seconds == state.size / SPEED
        saver.save()
        saver.wait()
        seconds = saver.seconds
        assert seconds > state.size / SPEED, "measured: it includes the renaming and flushing"
        saver.seconds = 1.0
        saver.begun = time.monotonic() - 40
        assert not saver.due() and not saver.due(early=True)
        saver.begun -= 15
        assert saver.due() and saver.due(early=True)
        saver.seconds = 0.1
        saver.begun = time.monotonic() - 20
        assert not saver.due() and saver.due(early=True), "the share permits it, the least interval does not"
    output = capsys.readouterr().out
    assert output.count("fit: a kill loses at most 30 s and a step (estimated from a state of ") == 1


def test_a_state_is_the_one_of_its_step_whatever_follows(tmp_path: Path) -> None:
    """The writing thread has a copy, so a step that changes the weights in place does not reach it."""
    fit = Fit("adamw")
    state = State(fit, tmp_path)
    before = fit.weight.detach().clone()
    with Saver(state) as saver:
        saver.save()
        with torch.no_grad():
            fit.weight.zero_()
    _, tensors = load_state(tmp_path) or (0, {})
    assert torch.equal(tensors["fit/weights/net/0.0.weight"], before)
