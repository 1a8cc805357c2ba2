"""Scripts that start in a process forked from one with the libraries: as usual, only sooner."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.preloading import BEGIN, LOADED, is_loaded, preloading, ran, usual, wait_for
from tests.preloading import preloaded as preloaded
from tests.terminal import on_a_terminal

if not hasattr(os, "pidfd_open"):
    pytest.skip("the server needs Linux", allow_module_level=True)

SHOW = """
import json, os, signal, sys
print(json.dumps({
    "arguments": sys.argv, "name": __name__, "file": __file__, "path": sys.path, "folder": os.getcwd(),
    "variables": dict(os.environ), "mask": os.umask(0), "input": sys.stdin.read(),
    "signals": [str(signal.getsignal(number)) for number in (1, 2, 3, 10, 12, 15)],
    "bytecode": sys.dont_write_bytecode, "main": sys.modules["__main__"].__file__,
    "streams": [type(stream).__name__ for stream in (sys.stdin, sys.stdout, sys.stderr)],
    "buffered": [sys.stdout.line_buffering, sys.stdout.write_through, sys.stderr.line_buffering],
}))
"""
ENDS = {
    "returns": "print('done')",
    "status": "raise SystemExit(7)",
    "message": "raise SystemExit('no such file')",
    "error": "def fail():\n    raise ValueError('wrong shape')\nfail()",
    "interrupt": "raise KeyboardInterrupt",
    "signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "at exit": "import atexit; atexit.register(print, 'last'); print('first')",
    "thread": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\nprint('main')",
    "syntax": "if True print()",
    "other program": "import os; os.execvp('echo', ['echo', 'became another'])",
}
SLEEPS = """
import subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
Path("pids").write_text(f"{__import__('os').getpid()} {child.pid}")
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("saved")
    raise SystemExit(130)
"""


def test_a_script_finds_the_libraries_imported(preloaded: dict[str, str], tmp_path: Path) -> None:
    assert is_loaded(tmp_path, preloaded)
    assert not is_loaded(tmp_path, usual(preloaded))


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({"FEWSTEP_BATCH": "3", "DVC_STAGE": "reflow"}, ()),
        ({"PYTHONPATH": f"code{os.pathsep}{os.pathsep}/more"}, ()),
        ({"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}, ()),
        ({"PYTHONUNBUFFERED": "", "PYTHONDONTWRITEBYTECODE": ""}, ()),
        ({}, ("-u",)),
    ],
)
def test_it_sees_what_it_would_see_as_usual(
    preloaded: dict[str, str], tmp_path: Path, variables: dict[str, str], options: tuple[str, ...]
) -> None:
    folder = tmp_path / "stages"
    folder.mkdir()
    (folder / "show.py").write_text(SHOW)

    def prepare() -> None:
        os.umask(0o027)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    begun = is_loaded(tmp_path, {**preloaded, **variables}, *options, preexec_fn=prepare)
    assert begun, "else both starts are usual"
    arguments, how = (*options, "stages/show.py", "one", "-2"), {"input": "typed\n", "preexec_fn": prepare}
    seen = []
    for environment in (preloaded, usual(preloaded)):
        status, output, errors = ran(tmp_path, {**environment, **variables}, *arguments, **how)
        assert (status, errors) == (0, "")
        seen.append(json.loads(output))
        del seen[-1]["variables"]["PATH"]
        # A shell has been between.
        for name in ("_", "SHLVL", "PWD", "OLDPWD"):
            seen[-1]["variables"].pop(name, None)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_as_usual(preloaded: dict[str, str], tmp_path: Path, end: str) -> None:
    assert is_loaded(tmp_path, preloaded), "else both starts are usual"
    (tmp_path / "script.py").write_text(ENDS[end])
    results = [ran(tmp_path, environment, "script.py") for environment in (preloaded, usual(preloaded))]
    assert results[0] == results[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_it_and_its_children(
    preloaded: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    command, pids = ["python", "sleeps.py"], tmp_path / "pids"
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=preloaded,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by jobs in the background
    ) as process:
        try:
            wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
            process.send_signal(number)
            output = process.communicate(timeout=10)[0]
        finally:
            process.kill()
    interrupted = number == signal.SIGINT
    assert (process.returncode, output) == ((130, "saved\n") if interrupted else (-number, ""))
    wait_for(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split()))


def limited() -> None:
    """Have one file less than the server may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))


@pytest.mark.parametrize(
    ("variables", "how"),
    [
        ({"OMP_NUM_THREADS": "7"}, {}),
        ({"HF_HOME": "/elsewhere"}, {}),
        ({}, {"preexec_fn": limited}),
        ({}, {"preexec_fn": lambda: os.nice(1)}),
        ({}, {"preexec_fn": lambda: os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])}),
    ],
)
def test_other_surroundings_than_the_servers_are_a_usual_start(
    preloaded: dict[str, str], tmp_path: Path, variables: dict[str, str], how: dict[str, Any]
) -> None:
    if "preexec_fn" in how and len(os.sched_getaffinity(0)) == 1:
        pytest.skip("one core")
    assert not is_loaded(tmp_path, {**preloaded, **variables}, **how)


def test_a_library_of_the_users_own_is_a_usual_start(preloaded: dict[str, str], tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "peft").mkdir(parents=True)
    assert is_loaded(tmp_path, {**preloaded, "PYTHONPATH": str(own)}), "a folder alone is no library"
    (own / "peft.py").write_text("")
    assert not is_loaded(tmp_path, {**preloaded, "PYTHONPATH": str(own)})
    (tmp_path / "peft.py").write_text("")
    assert not is_loaded(tmp_path, preloaded), "it lies beside the script"


def test_a_module_is_run_too(preloaded: dict[str, str], tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text(LOADED)
    (package / "show.py").write_text(SHOW)
    seen = []
    for environment in (preloaded, usual(preloaded)):
        status, output, errors = ran(tmp_path, environment, "-m", "package.show", "one", input="")
        assert (status, errors) == (0, "")
        loaded, shown = output.splitlines()
        assert loaded == str(environment is preloaded)
        seen.append(json.loads(shown))
        del seen[-1]["variables"]
    assert seen[0] == seen[1]
    results = [ran(tmp_path, each, "-m", "package.missing") for each in (preloaded, usual(preloaded))]
    assert results[0][0] == results[1][0] == 1 and "No module named package.missing" in results[0][2]


STAGE = """
import os, sys
from pathlib import Path
from fewstep.core.stage import run
def main():
    loaded = "diffusers.models.unets.unet_2d_condition" in sys.modules
    Path(f"loaded-{os.environ['RANK']}").write_text(str(loaded))
run(main, Path("out"), several=True)
"""


def test_the_processes_of_a_launcher_find_the_libraries_too(
    preloaded: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "stage.py").write_text(STAGE)
    launch = f"{preloaded['FEWSTEP_PYTHON']} -m accelerate.commands.launch"
    options = "--num_processes 2 --main_process_port 0 --multi_gpu"
    place = {"FEWSTEP_LAUNCH": f"{launch} {options}", "CUDA_VISIBLE_DEVICES": ""}
    status, _, errors = ran(tmp_path, {**preloaded, **place}, "stage.py")
    assert status == 0, errors
    assert [(tmp_path / f"loaded-{rank}").read_text() for rank in range(2)] == ["True", "True"]


def test_dvc_writes_what_it_writes_as_usual(preloaded: dict[str, str], tmp_path: Path) -> None:
    """In colours on a terminal, without them elsewhere."""
    written = []
    for environment in (preloaded, usual(preloaded)):
        ours = {**environment, "PATH": f"{environment['PATH']}{os.pathsep}{Path(sys.executable).parent}"}
        command = [shutil.which("dvc", path=ours["PATH"]) or "", "status"]
        piped = subprocess.run(command, cwd=tmp_path, env=ours, capture_output=True, text=True, check=False)
        written.append((piped.stdout, piped.stderr, on_a_terminal(command, tmp_path, ours)))
    assert written[0] == written[1]
    assert "ERROR" in written[0][1] and "\x1b" not in written[0][1] and "\x1b" in written[0][2]


@pytest.mark.parametrize("kind", ["--mount", "--ipc"])
def test_in_namespaces_of_its_own_a_start_is_usual(
    preloaded: dict[str, str], tmp_path: Path, kind: str
) -> None:
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]  # which is another difference
    isolated = ["unshare", *as_root, kind]
    if not shutil.which("unshare") or subprocess.run([*isolated, "true"], check=False).returncode != 0:
        pytest.skip("needs the right to make a namespace")
    (tmp_path / "loaded.py").write_text(LOADED)
    command = [*isolated, preloaded["FEWSTEP_PYTHON"], "loaded.py"]
    shown = subprocess.run(command, cwd=tmp_path, env=preloaded, capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"


def test_what_is_no_script_runs_as_usual(preloaded: dict[str, str], tmp_path: Path) -> None:
    assert ran(tmp_path, preloaded, "-c", "print(1)") == (0, "1\n", "")
    status, _, errors = ran(tmp_path, preloaded, "missing.py")
    assert status == 2 and "No such file" in errors


def test_without_a_server_all_starts_are_usual(tmp_path: Path) -> None:
    with preloading() as (process, environment):
        for other in psutil.process_iter(["cmdline"]):
            command = other.info["cmdline"] or []
            if str(process.pid) in command and any(part.endswith("server.py") for part in command):
                other.kill()
        assert not is_loaded(tmp_path, environment)
    shutil.rmtree(Path(environment["PATH"].partition(os.pathsep)[0]).parent)


def test_the_command_is_the_process_itself(tmp_path: Path) -> None:
    """Its signals and its status need no one to pass them on."""
    command = [*BEGIN, sys.executable, "-c", "import os; print(os.getpid()); raise SystemExit(5)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0] == f"{process.pid}\n"
    assert process.returncode == 5
    none = subprocess.run([*BEGIN, "no-such-command"], capture_output=True, text=True, check=False)
    assert none.returncode == 1 and none.stderr == "error: no-such-command: No such file or directory\n"
    long = {**os.environ, "TMPDIR": str(tmp_path / ("long" * 25))}
    Path(long["TMPDIR"]).mkdir()
    told = subprocess.run([*BEGIN, "echo", "runs"], env=long, capture_output=True, text=True, check=True)
    assert told.stdout == "runs\n" and "a shorter TMPDIR may help" in told.stderr
    assert not list(Path(long["TMPDIR"]).iterdir())
