"""The chain as a flow: one task per stage of dvc.yaml, as many at once as the host has slots.

    python -m flows.chain          # no server needed

A stage is run by `dvc repro -s`, so a flow has the same results as `dvc repro`. Either can continue where the
other was interrupted.
"""

import fcntl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, wait
from prefect.states import Completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from fewstep.core.errors import UserError
from flows.attempts import attempt
from flows.graph import Stage, stages_of, unchanged
from flows.overrides import override
from flows.process import StageFailed
from flows.publish import publish

STOP = threading.Event()
"""Set when the flow ends early; every task checks it."""
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
    are written there first. force: also run unchanged stages. pull: use results of others on the DVC remote.
    """
    root = Path.cwd()
    with alone_in(root):
        asked = override(root, overrides or {})
        stages = stages_of(root, targets or [])
        arguments = [*(["--force"] if force else []), *(["--pull"] if pull else [])]
        tasks: dict[str, PrefectFuture[Any]] = {}
        with finish(tasks):
            look_outside(root, stages, tasks)
            idle = set() if force else unchanged(root, stages)
            for stage in (each for each in stages if not each.always):
                before = [tasks[name] for name in stage.needs]
                parameters = (stage, root, stage.name in idle, arguments)
                tasks[stage.name] = named(run, stage.name).submit(*parameters, wait_for=before)
        publish(root, asked.evaluate.models)


def look_outside(root: Path, stages: Sequence[Stage], tasks: dict[str, PrefectFuture[Any]]) -> None:
    """Run the stages that hash inputs outside the project. Only then is it known which stages changed."""
    for stage in (each for each in stages if each.always):
        tasks[stage.name] = named(run, stage.name).submit(stage, root, False, [])
    wait(list(tasks.values()))


def named(what: Task[Any, Any], name: str) -> Task[Any, Any]:
    """The task under this name. The UI shows `name` before the task starts, then `task_run_name`."""
    return what.with_options(name=name, task_run_name=name)


@contextmanager
def finish(tasks: Mapping[Any, PrefectFuture[Any]]) -> Iterator[None]:
    """Wait for the tasks that are submitted inside. If interrupted, stop every task and wait for its end.

    Raises StageFailed with the messages of all failed tasks.
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
    """Run one stage without its ancestors."""
    if idle:
        return Completed(name="Cached", message="nothing it depends on has changed")
    return attempt(stage, root, ["-s", *arguments], STOP)


@contextmanager
def alone_in(root: Path, patient: bool = False) -> Iterator[None]:
    """Lock the workspace for one flow. Raises UserError when another flow holds it; patient: wait instead."""
    place = root / ".dvc/tmp/flow.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(f"{root}: another flow is at work in this workspace") from None
        yield


if __name__ == "__main__":
    chain()
