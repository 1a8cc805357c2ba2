"""The chain on several hosts: every stage is a separate flow run, taken by any free worker.

    python -m flows.cluster          # in a separate clone, with PREFECT_API_URL and a DVC remote set

Each worker has its own clone. A stage's outputs are pushed to the DVC remote with their entry in the run
cache, and later stages pull them from there. No clone is shared and nothing is committed in between. At the
end this clone has the results and the complete dvc.lock.
"""

import json
import os
import threading
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from dvc.repo import Repo  # type: ignore[import-untyped]
from httpx import HTTPError
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Cancelling, Completed, Failed

from fewstep.config.base import PARAMS
from fewstep.core.errors import UserError
from fewstep.core.paths import INPUTS
from flows.attempts import attempt, delay
from flows.chain import STOP, THREADS, alone_in, finish, look_outside, named
from flows.code import commit_of, follow
from flows.graph import Stage, stages_of, unchanged
from flows.overrides import override
from flows.process import run_dvc
from flows.publish import publish

DEPLOYMENT = "stage/stage"
"""Deployment of `on_worker` in prefect.yaml; its workers are those of the pool `fewstep-stages`."""
SEEN = "FEWSTEP_INPUTS"
"""Environment variable with the records that the stage `watch_inputs` writes on workers."""
LOOK_EVERY = 1.0
"""Seconds between two polls of a stage's run."""


@flow(name="cluster", task_runner=THREADS)
def cluster(targets: list[str] | None = None, overrides: dict[str, Any] | None = None) -> None:
    """Rebuild what changed, each stage once in the whole cluster; targets and overrides as for `chain`."""
    root = Path.cwd()
    with alone_in(root):
        require_remote(root)
        commit = commit_of(root)
        asked, params = override(root, overrides or {}), (root / PARAMS).read_text()
        stages = stages_of(root, targets or [])
        tasks: dict[str, PrefectFuture[Any]] = {}
        with finish(tasks):
            look_outside(root, stages, tasks)
            idle = unchanged(root, stages)
            os.environ[SEEN] = seen(root)
            there = [stage.name for stage in stages if stage.makes and stage.name in idle]
            first = named(share, "share").submit(root, there)
            tasks["share"] = first
            for stage in (each for each in stages if each.makes and not each.always):
                before = [*(tasks[name] for name in stage.needs), first]
                arguments = (stage, stage.name in idle, params, commit, os.environ[SEEN])
                tasks[stage.name] = named(place, stage.name).submit(*arguments, wait_for=before)
            everything = list(tasks.values())
            tasks["gather"] = named(gather, "gather").submit(root, targets or [], wait_for=everything)
        publish(root, asked.evaluate.models)


def seen(root: Path) -> str:
    """The records of `watch_inputs` on this host, as JSON."""
    records = {file.stem: json.loads(file.read_text()) for file in sorted((root / INPUTS).glob("*.json"))}
    return json.dumps(records)


def require_remote(root: Path) -> None:
    """Raises UserError where there is no DVC remote, by which clones exchange results."""
    with Repo(str(root)) as repo:
        if not repo.config["core"].get("remote"):
            raise UserError(f"{root}: clones exchange results by a DVC remote: `dvc remote add -d NAME URL`")


@task(cache_policy=NO_CACHE)
def share(root: Path, there: list[str]) -> None:
    """Push this clone's existing results to the remote, so that no worker makes them again."""
    if there:
        run_dvc(["push", "--run-cache", *there], "share", root, STOP, get_run_logger().info)


@task(cache_policy=NO_CACHE)
def gather(root: Path, targets: list[str]) -> None:
    """Pull the workers' results into this clone and its dvc.lock, and run the stages without outputs here."""
    run_dvc(["repro", "--pull", *targets], "gather", root, STOP, get_run_logger().info)


@task(cache_policy=NO_CACHE)
def place(stage: Stage, idle: bool, params: str, commit: str, inputs: str) -> State:
    """Run one stage on any worker, and again on another when that one is lost."""
    if idle:
        return Completed(name="Cached", message="nothing it depends on has changed")
    failures = 0
    while True:
        asked = {"name": stage.name, "params": params, "commit": commit, "inputs": inputs}
        child = run_deployment(DEPLOYMENT, parameters=asked, timeout=0, flow_run_name=stage.name)
        end = ended(cast(FlowRun, child).id)
        if STOP.is_set():
            return Cancelled(message="stopped; its state is kept, run it again to go on")
        if end.is_completed():
            return Completed(name=end.name, message=end.message)
        if end.is_failed():
            return Failed(message=end.message)
        failures += 1
        if failures > stage.demands.retries or STOP.wait(delay(failures)):
            return Failed(message=f"{stage.name}: {end.name}: {end.message}")
        get_run_logger().warning("%s: %s\nstarted again", end.name, end.message)


def ended(run: UUID) -> State:
    """Wait for a flow run's end, and cancel it once STOP is set. Returns its final state."""
    never, cancelling = threading.Event(), False
    with get_client(sync_client=True) as client:
        while True:
            try:
                state = client.read_flow_run(run).state
                if state is not None and state.is_final():
                    return state
                if STOP.is_set() and not cancelling:
                    client.set_flow_run_state(run, Cancelling())
                    cancelling = True
            except HTTPError as error:
                get_run_logger().warning("the server cannot be reached, asked again: %r", error)
            (never if cancelling else STOP).wait(LOOK_EVERY)


@flow(name="stage", flow_run_name="{name}")
def on_worker(name: str, params: str, commit: str, inputs: str) -> State:
    """Run one stage in this worker's clone, with the code of `commit` and `params` as text of params.yaml.

    inputs: the first host's records of the inputs outside the project, which this host need not have.
    """
    root = Path.cwd()
    os.environ[SEEN] = inputs
    with alone_in(root, patient=True):
        follow(root, commit)
        (root / PARAMS).write_text(params)
        (stage,) = (each for each in stages_of(root, [name]) if each.name == name)

        def push() -> None:
            run_dvc(["push", "--run-cache", name], name, root, STOP, get_run_logger().info)

        return attempt(stage, root, ["--pull"], STOP, then=push)


if __name__ == "__main__":
    cluster()
