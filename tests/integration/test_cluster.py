"""The chain on several workers, each with a clone of its own, and a directory as the DVC remote."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.integration.flowing import CODE, assert_ended, ended, start
from tests.integration.project import Project, ran
from tests.integration.server import BIN, Server

CLUSTER = CODE.replace("flows.chain import chain; chain", "flows.cluster import cluster; cluster")
WANTED = ["evaluate@no_halving"]


def commit(project: Project) -> None:
    """Everything as it is."""
    for command in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "all"]):
        done = project.run("git", *command)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def shared(copied: Project) -> Project:
    """The finished chain, committed, with a directory as its remote."""
    remote = copied.folder.parent / "remote"
    assert copied.run("dvc", "remote", "add", "-d", "there", str(remote)).returncode == 0
    commit(copied)
    return copied


def cloned(project: Project, name: str) -> Project:
    """What another host has: the code alone."""
    folder = project.folder.parent / name
    subprocess.run(["git", "clone", "-q", project.folder, folder], check=True)
    return Project.at(folder)


@dataclass(frozen=True)
class Host:
    """A worker and what it started."""

    worker: psutil.Process
    log: Path

    def ran(self) -> list[str]:
        """The stages that ran here."""
        return ran(self.log.read_text())

    def trains(self, stage: str) -> bool:
        """Whether the stage is at work here and has kept a state."""
        return any((self.log.parent / self.log.stem / ".checkpoints" / stage).rglob("*.safetensors"))

    def lose(self) -> None:
        """What a power cut leaves: nothing."""
        for process in [self.worker, *self.worker.children(recursive=True)]:
            process.kill()


@contextmanager
def working(project: Project, server: Server, **environment: str) -> Iterator[Host]:
    """A worker in this clone."""
    log = project.folder.parent / f"{project.folder.name}.log"
    own = {
        "FEWSTEP_CLONE": str(project.folder),
        "TMPDIR": str(project.folder.parent),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            [BIN / "prefect", "worker", "start", "--pool", "fewstep-stages", "--limit", "1"],
            cwd=project.folder,
            env=project.environment(**server.environment, **own, **environment, FEWSTEP_SLOTS="2"),
            stdout=file,
            stderr=subprocess.STDOUT,
            # Where it is ignored, as in a shell's background jobs, Prefect's worker cannot be ended.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield Host(psutil.Process(process.pid), log)
        finally:
            process.terminate()
            process.wait(120)


def until(true: Callable[[], object], seconds: float = 900) -> None:
    """Wait for it; on a busy host of two cores a stage may take minutes to begin."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.1)


def deploy(project: Project, server: Server) -> None:
    """The pool and the deployment, as `make ui` makes them."""
    for command in (
        ["work-pool", "create", "fewstep-stages", "--type", "process", "--overwrite"],
        ["--no-prompt", "deploy", "--name", "stage"],
    ):
        done = project.run("prefect", *command, **server.environment)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_stage_runs_once_in_the_whole_cluster(shared: Project, server: Server) -> None:
    deploy(shared, server)
    clones = [cloned(shared, name) for name in ("one", "two")]
    with ExitStack() as workers:
        hosts = [workers.enter_context(working(clone, server)) for clone in clones]
        said = assert_ended(
            start(shared, server, {}, CLUSTER, overrides={"triplets.steps": 5}, targets=WANTED)
        )
    shares = [host.ran() for host in hosts]
    expected = ["distill@no_halving", "evaluate@no_halving", "generate_triplets@0", "generate_triplets@1"]
    assert sorted(shares[0] + shares[1]) == sorted([*expected, "reflow@reflow"]), said
    assert all(shares), "one worker did everything"
    assert set(ran(said)) == set()
    tasks = server.tasks("cluster")
    assert tasks["train_teacher@small"] == "Cached" and tasks["reflow@reflow"] == "Completed"
    assert shared.run("dvc", "status", *WANTED).stdout.strip() == "Data and pipelines are up to date."
    assert shared.repro(*WANTED) == set()


def test_the_stage_of_a_killed_worker_and_of_a_lost_host_is_given_to_another(
    shared: Project, server: Server
) -> None:
    deploy(shared, server)
    own = {"FEWSTEP_SAVE_EVERY_SECONDS": "0"}
    longer = {"reflow.reflow.training.steps": 150, "students.no_halving.training.steps": 150}
    process = start(shared, server, own, CLUSTER, overrides=longer, targets=["distill@no_halving"])
    with working(cloned(shared, "one"), server, **own) as one:
        until(lambda: one.trains("reflow@reflow"))
        one.worker.kill()
        with working(cloned(shared, "two"), server, **own) as two:
            until(lambda: two.trains("distill@no_halving"))
            two.lose()
            (lost,) = server.running("stage")
            # As the automation of `make ui` does once heartbeats are missing.
            server.ask(f"flow_runs/{lost}/set_state", {"state": {"type": "CRASHED"}, "force": True})
            with working(cloned(shared, "three"), server, **own) as three:
                said = assert_ended(process)
    assert one.ran() == ["reflow@reflow"]
    assert two.ran() == ["reflow@reflow", "distill@no_halving"]
    assert three.ran() == ["distill@no_halving"]
    assert said.count("started again") == 2
    assert shared.run("dvc", "status", "distill@no_halving").stdout.strip().endswith("up to date.")


def test_workers_have_what_is_committed(shared: Project, server: Server) -> None:
    (shared.folder / "src/fewstep/new.py").write_text("")
    status, said = ended(start(shared, server, {}, CLUSTER))
    assert status != 0 and "src/fewstep/new.py: not committed" in said


def test_without_a_remote_there_is_no_cluster(copied: Project, server: Server) -> None:
    status, said = ended(start(copied, server, {}, CLUSTER))
    assert status != 0 and "dvc remote add -d" in said
