"""The chain as a flow, with a real Prefect server: what it shows, how it stops, how it goes on."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fewstep.stage import OUT_OF_MEMORY
from tests.integration.flowing import CODE, Flow, assert_ended, ended, flow, start
from tests.integration.project import LOOKS, UP_TO_DATE, Project
from tests.integration.server import Server

KEEP = {"FEWSTEP_SAVE_EVERY_SECONDS": "0"}
REFLOW = ["reflow@reflow"]


def others(tasks: dict[str, str]) -> set[str]:
    """The states of all tasks but the look outside."""
    return {state for name, state in tasks.items() if not name.endswith(LOOKS)}


def training(project: Project, steps: int) -> None:
    """Make reflow long enough to be caught at work."""
    params = project.params
    params["reflow"]["reflow"]["training"]["steps"] = steps
    project.write_params(params)


def at_work(project: Project) -> int | None:
    """The process that trains reflow, once it has kept a state."""
    if not any((project.folder / ".checkpoints").glob("reflow@reflow/*/*/step-*")):
        return None
    found = subprocess.run(
        ["pgrep", "-f", "stages/reflow.py reflow"], capture_output=True, text=True, check=False
    ).stdout.split()
    here = [int(pid) for pid in found if Path(f"/proc/{pid}/cwd").resolve() == project.folder.resolve()]
    return max(here) if here else None


def caught(project: Project, process: Flow) -> int:
    """Wait until reflow is at work."""
    while (pid := at_work(project)) is None:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    return pid


def test_one_task_per_stage_and_the_second_time_none_runs(
    new_project: Callable[..., Project], server: Server
) -> None:
    project = new_project()
    flow(project, server)
    tasks = server.tasks()
    assert set(tasks) == set(project.lock()) and set(tasks.values()) == {"Completed"}
    shown = server.artifacts()
    assert {"metrics", "pictures", "report", "reflow-reflow-reflow"} <= set(shown)
    assert shown["reflow-reflow-reflow"]["data"] == 100.0
    assert project.run("dvc", "status").stdout.strip() == UP_TO_DATE

    begun = time.monotonic()
    flow(project, server)
    seconds = time.monotonic() - begun
    assert others(server.tasks()) == {"Cached"}
    assert seconds < 60


PLANTED = "planted-4711"
SECRETS = dict.fromkeys(("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PREFECT_API_AUTH_STRING"), PLANTED)


def holding(secret: str, *folders: Path) -> list[Path]:
    """Files that have it in them."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if secret.encode() in file.read_bytes()]


def test_only_what_depends_on_an_override_runs_and_no_secret_stays(copied: Project, server: Server) -> None:
    remote = ["dvc", "remote", "modify", "--local", "there", "password", PLANTED]
    for command in (["dvc", "remote", "add", "-d", "there", "ssh://me@nowhere.invalid/x"], remote):
        assert copied.run(*command).returncode == 0
    chosen: dict[str, Any] = {
        "overrides": {"students.no_halving.training.steps": 2},
        "targets": ["evaluate@no_halving"],
    }
    said = assert_ended(start(copied, server, SECRETS, **chosen))
    assert PLANTED not in said
    assert holding(PLANTED, copied.folder, server.home) == [copied.folder / ".dvc/config.local"]
    ran = {name for name, state in server.tasks().items() if state == "Completed"}
    assert ran == {LOOKS, "distill@no_halving", "evaluate@no_halving"}
    assert copied.params["students"]["no_halving"]["training"]["steps"] == 2


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (
            {"overrides": {"students.one_step.trainin.steps": 2}},
            "one_step.trainin.steps': no such parameter",
        ),
        ({"overrides": {"students.one_step.training.steps": 0}}, "students.one_step.training.steps = 0"),
        ({"targets": ["distill@nobody"]}, "distill@nobody: no such stage"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_touched(
    chosen: dict[str, Any], says: str, copied: Project, server: Server
) -> None:
    before = (copied.folder / "params.yaml").read_text()
    status, said = ended(start(copied, server, {}, **chosen))
    assert status != 0
    assert says in server.last_flow()["state"]["message"], said
    assert (copied.folder / "params.yaml").read_text() == before


def test_a_stage_that_fails_says_it_in_its_own_words(copied: Project, server: Server) -> None:
    params = copied.params
    params["data"] |= {"source": "folder", "path": "nowhere"}
    params["judge"]["train"] = []
    params["features"] = "artifacts/models/teacher"
    copied.write_params(params)
    status, said = ended(start(copied, server, {}))
    assert status != 0
    assert "nowhere" in server.last_flow()["state"]["message"], said
    assert server.tasks()["prepare_data"] == "Failed"
    assert server.tasks()["train_teacher@small"] == "NotReady"
    assert "started again" not in said


# SIGTERM is what a worker sends when the run is cancelled; SIGKILL can be answered by nobody but the guard.
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_it_leaves_nothing_and_goes_on_where_it_was(
    number: signal.Signals, copied: Project, server: Server
) -> None:
    training(copied, 200)
    process = start(copied, server, KEEP, targets=REFLOW)
    pid = caught(copied, process)
    begun = time.monotonic()
    process.send_signal(number)
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() - begun < 10, "a child outlives the flow by more than ten seconds"
        time.sleep(0.02)
    status, said = ended(process)
    assert status != 0, said
    assert copied.run("dvc", "status").returncode == 0
    assert "resumes at step" in flow(copied, server, targets=REFLOW)


def test_a_killed_stage_is_started_again_and_resumes(copied: Project, server: Server) -> None:
    training(copied, 200)
    process = start(copied, server, KEEP, targets=REFLOW)
    os.kill(caught(copied, process), signal.SIGKILL)
    status, said = ended(process)
    assert status == 0, said
    assert "started again" in said and "resumes at step" in said
    assert server.tasks()["reflow@reflow"] == "Completed"


def test_a_stage_that_takes_too_long_is_stopped_with_its_state_kept(copied: Project, server: Server) -> None:
    training(copied, 100_000)
    described = yaml.safe_load((copied.folder / "dvc.yaml").read_text())
    described["stages"]["reflow"]["do"]["meta"] = {"hours": 12 / 3600}
    (copied.folder / "dvc.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    status, said = ended(start(copied, server, KEEP, targets=REFLOW))
    assert status != 0
    assert "took longer than its `hours`" in server.last_flow()["state"]["message"], said
    assert any((copied.folder / ".checkpoints").glob("reflow@reflow/*/*/step-*"))


def test_a_workspace_has_one_flow_at_a_time(copied: Project, server: Server) -> None:
    training(copied, 100_000)
    first = start(copied, server, KEEP, targets=REFLOW)
    caught(copied, first)
    status, said = ended(start(copied, server, {}))
    first.send_signal(signal.SIGTERM)
    assert status != 0 and "another flow is at work in this workspace" in said
    assert ended(first)[0] != 0


VARIED = {"reflow.reflow.training.steps": [4, 5], "students.no_halving.training.steps": [2, 4]}
ABLATION = CODE.replace("flows.chain import chain; chain", "flows.ablation import ablation; ablation")


def test_variants_share_their_ancestors_and_become_experiments(copied: Project, server: Server) -> None:
    for command in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "all"]):
        assert copied.run("git", *command).returncode == 0
    before = (copied.folder / "params.yaml").read_text()
    chosen = {"variants": VARIED, "targets": ["evaluate@no_halving"]}
    assert_ended(start(copied, server, {}, ABLATION, **chosen))
    states: dict[str, list[str]] = {}
    for name, state in server.tasks().items():
        states.setdefault(name.partition(": ")[2], []).append(state)
    assert sorted(states["train_teacher@small"]) == ["Cached"] * 4
    # The workspace's own reflow has 4 steps; that of 5 is made for the first of its two variants.
    assert sorted(states["reflow@reflow"]) == ["Cached"] * 3 + ["Completed"]
    assert states["distill@no_halving"] == states["evaluate@no_halving"] == ["Completed"] * 4
    assert (copied.folder / "params.yaml").read_text() == before
    rows = json.loads(server.artifacts()["comparison"]["data"])
    compared = {tuple(row[key] for key in VARIED) for row in rows}
    assert compared == {("4", "2"), ("4", "4"), ("5", "2"), ("5", "4")}
    page = (copied.folder / "reports/ablation.html").read_text()
    assert all(key.rsplit(".", 1)[-1] in page for key in VARIED) and "data:image/png" in page
    assert server.artifacts()["comparison-page"]["type"] == "markdown"
    shown = copied.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert sorted(shown) == ["steps-4-steps-2", "steps-4-steps-4", "steps-5-steps-2", "steps-5-steps-4"]

    again = [{key: values[0] for key, values in VARIED.items()}]
    assert_ended(start(copied, server, {}, ABLATION, variants=again, targets=chosen["targets"]))
    assert others(server.tasks()) == {"Cached"}


GREEDY = """
import os, sys
from pathlib import Path
if int(os.environ.get("FEWSTEP_MICRO_BATCH", "16")) > ROOM:
    sys.exit("error: OUT_OF_MEMORY: no 20 GiB")
Path("greedy.txt").write_text(os.environ["FEWSTEP_MICRO_BATCH"])
"""


@pytest.mark.parametrize(("room", "ends"), [(8, "Completed"), (4, "Failed")])
def test_out_of_memory_it_is_started_once_more_with_half_the_samples_at_a_time(
    room: int, ends: str, copied: Project, server: Server
) -> None:
    described = yaml.safe_load((copied.folder / "dvc.yaml").read_text())
    described["stages"]["greedy"] = {
        "cmd": "python greedy.py",
        "params": ["reflow.reflow"],
        "outs": ["greedy.txt"],
    }
    (copied.folder / "dvc.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    script = GREEDY.replace("ROOM", str(room)).replace("OUT_OF_MEMORY", OUT_OF_MEMORY)
    (copied.folder / "greedy.py").write_text(script)
    status, said = ended(start(copied, server, {}, targets=["greedy"]))
    assert server.tasks()["greedy"] == ends, said
    assert said.count("started again with FEWSTEP_MICRO_BATCH=8") == 1
    assert (status == 0) == (ends == "Completed")
    if status == 0:
        assert (copied.folder / "greedy.txt").read_text() == "8"
