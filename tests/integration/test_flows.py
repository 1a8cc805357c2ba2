"""The chain as a flow, with a real Prefect server: what it shows, how it stops, how it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from flows.chain import alone_in

from fewstep.core.errors import UserError
from fewstep.core.stage import OUT_OF_MEMORY
from tests.integration.flowing import CODE, Flow, assert_ended, ended, flow, start
from tests.integration.project import LOOKS, UP_TO_DATE, Project
from tests.integration.server import Server
from tests.integration.waiting import until

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


def states(project: Project) -> set[Path]:
    """What reflow has kept."""
    return set((project.folder / ".checkpoints").glob("reflow@reflow/*/*/step-*"))


def at_work(project: Project) -> int | None:
    """The process that trains reflow, if there is one."""
    pids = subprocess.run(
        ["pgrep", "-f", "stages/reflow.py reflow"], capture_output=True, text=True, check=False
    ).stdout.split()
    here = [int(pid) for pid in pids if Path(f"/proc/{pid}/cwd").resolve() == project.folder.resolve()]
    return max(here) if here else None


def caught(project: Project, process: Flow) -> int:
    """Wait until reflow is at work and has kept a state since."""
    before = states(project)
    until(lambda: states(project) - before, process, pause=0.02)
    pid = at_work(project)
    assert pid is not None
    return pid


def fewer(params: dict[str, Any]) -> dict[str, Any]:
    """The chain's longest path, and the teacher: each further stage would take ten seconds."""
    models = params["evaluate"]["models"]
    kept = {name: models[name] for name in ("teacher", "one_step")}
    students = {"one_step": params["students"]["one_step"]}
    return params | {"compress": {}, "decoder": {}, "students": students, "evaluate": {"models": kept}}


def test_it_makes_what_dvc_repro_makes_with_one_task_per_stage_and_the_second_time_none_runs(
    new_project: Callable[..., Project], finished: Project, server: Server
) -> None:
    """Two clean runs, in two folders and by two ways, write the same into dvc.lock."""
    project = new_project(fewer(finished.params))
    begun = time.monotonic()
    flow(project, server)
    first = time.monotonic() - begun
    tasks = server.tasks()
    assert set(tasks) == set(project.lock()) and set(tasks.values()) == {"Completed"}
    shown = server.artifacts()
    assert {"metrics", "pictures", "report", "reflow-reflow-reflow"} <= set(shown)
    assert shown["reflow-reflow-reflow"]["data"] == 100.0
    assert project.run("dvc", "status").stdout.strip() == UP_TO_DATE
    made, same = project.lock(), finished.lock()
    assert {"export@one_step", "evaluate@one_step", "report"} < set(made)
    del made["report"]  # of fewer models
    assert made == {name: same[name] for name in made}

    begun = time.monotonic()
    flow(project, server)
    assert others(server.tasks()) == {"Cached"}
    assert time.monotonic() - begun < first / 2


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
    output = assert_ended(start(copied, server, SECRETS, **chosen))
    assert PLANTED not in output
    assert holding(PLANTED, copied.folder, server.home) == [copied.folder / ".dvc/config.local"]
    ran = {name for name, state in server.tasks().items() if state == "Completed"}
    assert ran == {LOOKS, "distill@no_halving", "evaluate@no_halving"}
    assert copied.params["students"]["no_halving"]["training"]["steps"] == 2


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"overrides": {"students.one_step.trainin.steps": 2}}, "one_step.trainin.steps': no such parameter"),
    ({"overrides": {"students.one_step.training.steps": 0}}, "students.one_step.training.steps = 0"),
    ({"targets": ["distill@nobody"]}, "distill@nobody: no such stage"),
]
ONE_BY_ONE = """
import json, sys
from contextlib import suppress
from fewstep.core.errors import UserError
from flows.chain import chain
for chosen in json.loads(sys.argv[1])["runs"]:
    with suppress(UserError):
        chain(**chosen)
"""


def test_what_cannot_be_is_refused_before_anything_is_touched(copied: Project, server: Server) -> None:
    before = (copied.folder / "params.yaml").read_text()
    output = assert_ended(start(copied, server, {}, ONE_BY_ONE, runs=[chosen for chosen, _ in IMPOSSIBLE]))
    runs = server.last_flows(len(IMPOSSIBLE))[::-1]
    for run, (_, message) in zip(runs, IMPOSSIBLE, strict=True):
        assert run["state"]["type"] == "FAILED" and message in run["state"]["message"], output
    assert (copied.folder / "params.yaml").read_text() == before


def test_a_failed_stage_is_reported_with_its_own_message(copied: Project, server: Server) -> None:
    params = copied.params
    params["data"] |= {"source": "folder", "path": "nowhere"}
    params["judge"]["train"] = []
    params["features"] = "artifacts/models/teacher"
    copied.write_params(params)
    status, output = ended(start(copied, server, {}))
    assert status != 0
    assert "nowhere" in server.last_flow()["state"]["message"], output
    assert server.tasks()["prepare_data"] == "Failed"
    assert server.tasks()["train_teacher@small"] == "NotReady"
    assert "started again" not in output


def test_stopped_killed_or_robbed_of_its_stage_it_leaves_nothing_and_goes_on_where_it_was(
    copied: Project, server: Server
) -> None:
    """SIGTERM is what a worker sends when the run is cancelled; SIGKILL only the guard can answer."""
    training(copied, 120)
    for number in (signal.SIGTERM, signal.SIGKILL):
        begun = time.monotonic()
        # Not preloaded: what kills its client kills all of its children as well, without the guard.
        process = start(copied, server, KEEP, program=sys.executable, targets=REFLOW)
        pid = caught(copied, process)
        # Ten seconds, or on a slow host half of what the start took.
        limit = max(10.0, (time.monotonic() - begun) / 2)
        begun = time.monotonic()
        process.process.send_signal(number)
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() - begun < limit, f"a child outlives the flow by more than {limit:.0f} s"
            time.sleep(0.02)
        status, output = ended(process)
        assert status != 0, output
        assert ("resumes at step" in output) == (number == signal.SIGKILL), "where the first was stopped"
        assert copied.run("dvc", "status").returncode == 0

    process = start(copied, server, KEEP, targets=REFLOW)
    os.kill(caught(copied, process), signal.SIGKILL)
    output = assert_ended(process)
    assert output.index("resumes at step") < output.index("started again") < output.rindex("resumes at step")
    assert server.tasks()["reflow@reflow"] == "Completed"


ENDLESS = """
import time
from pathlib import Path
Path("begun").touch()
try:
    time.sleep(3600)
except KeyboardInterrupt:
    Path("saved").touch()
    raise SystemExit(130)
"""


def with_stage(project: Project, name: str, script: str, **more: Any) -> None:
    """Add a stage that runs a script."""
    described = yaml.safe_load((project.folder / "dvc.yaml").read_text())
    described["stages"][name] = {"cmd": f"python {name}.py", "outs": [f"{name}.txt"], **more}
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    (project.folder / f"{name}.py").write_text(script)


def begun_and_stopped(project: Project, server: Server, seconds: float) -> bool:
    """Run a flow whose one stage would never end and may take so many seconds. Returns whether it began."""
    begun = project.folder / "begun"
    with_stage(project, "endless", ENDLESS, meta={"hours": seconds / 3600})
    process = start(project, server, {}, targets=["endless"])
    until(lambda: begun.exists() or not process.runs())
    if process.runs():
        refused = pytest.raises(UserError, match="another flow is at work in this workspace")
        with refused, alone_in(project.folder):
            pass
    status, output = ended(process)
    assert status != 0
    assert "took longer than its `hours`" in server.last_flow()["state"]["message"], output
    return begun.exists()


def test_a_stage_that_takes_too_long_is_stopped_and_its_flow_has_the_workspace_alone(
    copied: Project, server: Server
) -> None:
    # The seconds count from the start of DVC, which on a slow host takes longer than the first of these.
    assert any(begun_and_stopped(copied, server, seconds) for seconds in (10, 60, 360))
    assert (copied.folder / "saved").exists(), "it heard SIGINT, on which a training keeps its state"


VARIED = {"reflow.reflow.training.steps": [5], "students.no_halving.training.steps": [2, 4]}
ABLATION = CODE.replace("flows.chain import chain; chain", "flows.ablation import ablation; ablation")


def test_variants_share_their_ancestors_and_become_experiments(copied: Project, server: Server) -> None:
    for command in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "all"]):
        assert copied.run("git", *command).returncode == 0
    before = (copied.folder / "params.yaml").read_text()
    chosen: dict[str, Any] = {"variants": VARIED, "targets": ["evaluate@no_halving"]}
    assert_ended(start(copied, server, {}, ABLATION, **chosen))
    states: dict[str, list[str]] = {}
    for name, state in server.tasks().items():
        states.setdefault(name.partition(": ")[2], []).append(state)
    # The teacher is the workspace's own; the first variant makes the reflow of both.
    assert states["train_teacher@small"] == ["Cached"] * 2
    assert sorted(states["reflow@reflow"]) == ["Cached", "Completed"]
    assert states["distill@no_halving"] == states["evaluate@no_halving"] == ["Completed"] * 2
    assert (copied.folder / "params.yaml").read_text() == before
    rows = json.loads(server.artifacts()["comparison"]["data"])
    compared = {tuple(row[key] for key in VARIED) for row in rows}
    assert compared == {("5", "2"), ("5", "4")}
    page = (copied.folder / "reports/ablation.html").read_text()
    assert all(key.rsplit(".", 1)[-1] in page for key in VARIED) and "data:image/png" in page
    assert server.artifacts()["comparison-page"]["type"] == "markdown"
    shown = copied.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert sorted(shown) == ["steps-5-steps-2", "steps-5-steps-4"]
    refs = copied.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    experiments = [ref for ref in refs if ref.rpartition("/")[2] in shown]
    assert len(experiments) == 2
    for ref in experiments:
        saved = yaml.safe_load(copied.run("git", "show", f"{ref}:dvc.lock").stdout)["stages"]
        steps = [saved[name]["params"]["params.yaml"] for name in ("reflow@reflow", "distill@no_halving")]
        assert steps[0]["reflow.reflow"]["training"]["steps"] == 5
        assert steps[1]["students.no_halving"]["training"]["steps"] == int(ref[-1])
        assert "evaluate@no_halving" in saved

    again = [{key: values[0] for key, values in VARIED.items()}]
    assert_ended(start(copied, server, {}, ABLATION, variants=again, targets=chosen["targets"]))
    assert others(server.tasks()) == {"Cached"}


GREEDY = """
import os, sys
from pathlib import Path
if int(os.environ.get("FEWSTEP_MICRO_BATCH", "16")) > ROOM:
    sys.exit("error: OUT_OF_MEMORY: no 20 GiB")
Path("greedy_ROOM.txt").write_text(os.environ["FEWSTEP_MICRO_BATCH"])
"""


def test_out_of_memory_it_is_started_once_more_with_half_the_samples_at_a_time(
    copied: Project, server: Server
) -> None:
    ends = {8: "Completed", 4: "Failed"}
    for room in ends:
        script = GREEDY.replace("ROOM", str(room)).replace("OUT_OF_MEMORY", OUT_OF_MEMORY)
        with_stage(copied, f"greedy_{room}", script, params=["reflow.reflow"])
    status, output = ended(start(copied, server, {}, targets=[f"greedy_{room}" for room in ends]))
    tasks = server.tasks()
    assert status != 0 and {room: tasks[f"greedy_{room}"] for room in ends} == ends, output
    assert output.count("started again with FEWSTEP_MICRO_BATCH=8") == 2
    assert (copied.folder / "greedy_8.txt").read_text() == "8"
