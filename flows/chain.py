"""The chain as a flow: one task per stage of dvc.yaml, as many at once as the host has room for.

    python -m flows.chain          # no server needed

A stage is run by `dvc repro -s`, so whatever a flow did is what `dvc repro` would have done: it may be broken
off anywhere and gone on with by either.
"""

import fcntl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from fewstep.errors import UserError
from flows.graph import Stage, stages_of, unchanged
from flows.overrides import override
from flows.process import MayPass, OutOfMemory, StageFailed, run_stage
from flows.publish import following, publish
from flows.slots import Stopped, leased

STOP = threading.Event()
"""Set once the flow ends before its time; every task looks at it."""
BACK_OFF = 5.0
"""Seconds before a stage is started again; doubled each time."""
THREADS: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=64)
"""Tasks that may wait for a slot at the same time."""


@flow(name="chain", task_runner=THREADS, log_prints=True)
def chain(
    targets: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    pull: bool = False,
) -> None:
    """Rebuild what changed.

    targets: stages to end with; none: all. overrides: dotted keys of params.yaml and their new values, which
    are written there first. force: also what did not change. pull: take from the DVC remote what others made.
    """
    root = Path.cwd()
    with alone_in(root):
        asked = override(root, overrides or {})
        stages = stages_of(root, targets or [])
        idle = set() if force else unchanged(root, stages)
        arguments = [*(["--force"] if force else []), *(["--pull"] if pull else [])]
        tasks: dict[str, PrefectFuture[Any]] = {}
        with finish(tasks):
            for stage in stages:
                named: Task[Any, Any] = run.with_options(name=stage.name, task_run_name=stage.name)
                before = [tasks[name] for name in stage.needs]
                tasks[stage.name] = named.submit(stage, root, stage.name in idle, arguments, wait_for=before)
        publish(root, asked.evaluate.models)


@contextmanager
def finish(tasks: Mapping[Any, PrefectFuture[Any]]) -> Iterator[None]:
    """Wait for what is submitted inside; stopped meanwhile, see every task to its end first.

    Raises StageFailed with the words of each task that failed.
    """
    STOP.clear()
    try:
        yield
        wait(list(tasks.values()))
    except BaseException:
        STOP.set()
        wait(list(tasks.values()))
        raise
    failed = [future.state.message or "" for future in tasks.values() if future.state.is_failed()]
    if failed:
        raise StageFailed("\n".join(failed))


@task(cache_policy=NO_CACHE)
def run(stage: Stage, root: Path, idle: bool, arguments: list[str]) -> State:
    """One stage. Started again where what failed may pass, and once with half the samples at a time."""
    if idle:
        return Completed(name="Cached", message="nothing it depends on has changed")
    log, follow = get_run_logger(), following(stage.name)
    environment: dict[str, str] = {}
    failures = 0

    def hear(line: str) -> None:
        log.info(line)
        follow(line)

    while True:
        try:
            with leased(stage.demands.gpus, STOP) as lease:
                seconds = 3600 * stage.demands.hours if stage.demands.hours else None
                ran = run_stage(stage.name, root, lease, STOP, hear, seconds, environment, arguments)
            return Completed() if ran else Completed(name="Cached", message="DVC had it")
        except Stopped:
            return Cancelled(message="stopped; its state is kept, run it again to go on")
        except MayPass as error:
            failures += 1
            if failures > stage.demands.retries or STOP.wait(BACK_OFF * 2 ** (failures - 1)):
                return Failed(message=str(error))
            log.warning("%s\nstarted again", error)
        except OutOfMemory as error:
            smaller = halved(root, stage.name)
            if environment or smaller is None:
                return Failed(message=str(error))
            environment = {"FEWSTEP_MICRO_BATCH": str(smaller)}
            log.warning("%s\nstarted again with FEWSTEP_MICRO_BATCH=%d", error, smaller)
        except StageFailed as error:
            return Failed(message=str(error))


def halved(root: Path, stage: str) -> int | None:
    """Half the samples that the stage's training takes at once; None where it trains nothing or takes one."""
    from dvc.dependency.param import ParamsDependency  # type: ignore[import-untyped]
    from dvc.repo import Repo  # type: ignore[import-untyped]

    from fewstep.config.base import count_of

    with Repo(str(root)) as repo:
        (found,) = (each for each in repo.index.stages if each.name == stage)
        params = [dep.read_params() for dep in found.deps if isinstance(dep, ParamsDependency)]
    sizes = [
        section["training"]["batch_size"]
        for values in params
        for section in values.values()
        if isinstance(section, dict) and "training" in section
    ]
    half = count_of("MICRO_BATCH", sizes[0]) // 2 if sizes else 0
    return half or None


@contextmanager
def alone_in(root: Path) -> Iterator[None]:
    """Hold the workspace for one flow. Raises UserError when another has it."""
    place = root / ".dvc/tmp/flow.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{root}: another flow is at work in this workspace") from None
        yield


if __name__ == "__main__":
    chain()
