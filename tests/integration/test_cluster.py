"""The chain on several workers, each with a clone of its own, and a directory as the DVC remote."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.integration.flowing import CODE, assert_ended, ended, start
from tests.integration.project import PATIENCE, Project, ran
from tests.integration.server import BIN, Server
from tests.integration.waiting import until

CLUSTER = CODE.replace("flows.chain import chain; chain", "flows.cluster import cluster; cluster")
WANTED = ["evaluate@reflow"]


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

    def runs(self) -> bool:
        """Whether the worker has not ended."""
        return self.worker.is_running() and self.worker.status() != psutil.STATUS_ZOMBIE

    def trains(self, stage: str) -> bool:
        """Whether the stage is at work here: it has its place for unfinished work."""
        return any((self.log.parent / self.log.stem / ".checkpoints").glob(f"{stage}/*"))

    def lose(self) -> None:
        """What a power cut leaves: nothing."""
        for process in [self.worker, *self.worker.children(recursive=True)]:
            process.kill()


@contextmanager
def working(project: Project, server: Server, **environment: str) -> Iterator[Host]:
    """A worker in this clone."""
    log = project.folder.parent / f"{project.folder.name}.log"
    settings = {
        "FEWSTEP_CLONE": str(project.folder),
        "TMPDIR": str(project.folder.parent),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            [BIN / "prefect", "worker", "start", "--pool", "fewstep-stages", "--limit", "1"],
            cwd=project.folder,
            env=project.environment(**server.environment, **settings, **environment, FEWSTEP_SLOTS="2"),
            stdout=file,
            stderr=subprocess.STDOUT,
            # Where it is ignored, as in a shell's background jobs, Prefect's worker cannot be ended.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield Host(psutil.Process(process.pid), log)
        finally:
            process.terminate()
            process.wait(PATIENCE)


@pytest.fixture(scope="module")
def deployed(finished: Project, server: Server) -> Server:
    """A server that has the pool and the deployment, as `make ui` makes them."""
    for command in (
        ["work-pool", "create", "fewstep-stages", "--type", "process", "--overwrite"],
        ["--no-prompt", "deploy", "--name", "stage"],
    ):
        done = finished.run("prefect", *command, **server.environment)
        assert done.returncode == 0, done.stdout + done.stderr
    return server


def test_a_stage_runs_once_in_the_whole_cluster(shared: Project, deployed: Server) -> None:
    clones = [cloned(shared, name) for name in ("one", "two")]
    with ExitStack() as workers:
        hosts = [workers.enter_context(working(clone, deployed)) for clone in clones]
        output = assert_ended(
            start(shared, deployed, {}, CLUSTER, overrides={"triplets.steps": 5}, targets=WANTED)
        )
    shares = [host.ran() for host in hosts]
    expected = ["evaluate@reflow", "generate_triplets@0", "generate_triplets@1", "reflow@reflow"]
    assert sorted(shares[0] + shares[1]) == expected, output
    assert all(shares), "one worker did everything"
    assert set(ran(output)) == set()
    tasks = deployed.tasks("cluster")
    assert tasks["train_teacher@small"] == "Cached" and tasks["reflow@reflow"] == "Completed"
    assert shared.run("dvc", "status", *WANTED).stdout.strip() == "Data and pipelines are up to date."
    assert shared.repro(*WANTED) == set()


def test_the_stage_of_a_killed_worker_and_of_a_lost_host_goes_to_another(
    shared: Project, deployed: Server
) -> None:
    # Long enough to be caught at work.
    longer = {"reflow.reflow.training.steps": 60, "students.no_halving.training.steps": 60}
    flow = start(shared, deployed, {}, CLUSTER, overrides=longer, targets=["distill@no_halving"])
    with working(cloned(shared, "one"), deployed) as one:
        until(lambda: one.trains("reflow@reflow"), flow, one)
        one.worker.kill()
        with working(cloned(shared, "two"), deployed) as two:
            until(lambda: two.trains("distill@no_halving"), flow, two)
            two.lose()
            (lost,) = deployed.running("distill@no_halving")
            # As the automation of `make ui` does once heartbeats are missing.
            deployed.ask(f"flow_runs/{lost}/set_state", {"state": {"type": "CRASHED"}, "force": True})
            with working(cloned(shared, "three"), deployed) as three:
                until(lambda: not flow.runs(), three)
                output = assert_ended(flow)
    assert one.ran() == ["reflow@reflow"]
    assert two.ran() == ["reflow@reflow", "distill@no_halving"]
    assert three.ran() == ["distill@no_halving"]
    assert output.count("started again") == 2
    assert shared.run("dvc", "status", "distill@no_halving").stdout.strip().endswith("up to date.")


def test_workers_have_what_is_committed(shared: Project, server: Server) -> None:
    (shared.folder / "src/fewstep/new.py").write_text("")
    status, output = ended(start(shared, server, {}, CLUSTER))
    assert status != 0 and "src/fewstep/new.py: not committed" in output


def test_without_a_remote_there_is_no_cluster(copied: Project, server: Server) -> None:
    status, output = ended(start(copied, server, {}, CLUSTER))
    assert status != 0 and "dvc remote add -d" in output
