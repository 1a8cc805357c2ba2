"""Runs one stage on this host, and starts it again after a transient failure."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from flows.graph import Stage
from flows.process import OutOfMemory, StageFailed, TransientFailure, run_dvc
from flows.publish import following
from flows.slots import Stopped, leased

BACK_OFF = 5.0
"""Seconds before a stage is started again; doubled after each further failure."""


def attempt(
    stage: Stage,
    root: Path,
    arguments: Sequence[str],
    stop: threading.Event,
    then: Callable[[], None] = lambda: None,
) -> State:
    """Lease the slots that the stage needs and run it; returns its final state.

    arguments: of `dvc repro`. stop: set in order to end it. then: called after a success; where it raises
    TransientFailure, it is retried together with the stage.
    """
    log = get_run_logger()
    environment: dict[str, str] = {}
    failures = 0
    while True:
        try:
            with following(stage.name) as hear, leased(stage.demands.gpus, stop) as lease:
                seconds = 3600 * stage.demands.hours if stage.demands.hours else None
                command = ["repro", *arguments, stage.name]
                ran = run_dvc(command, stage.name, root, stop, hear, lease, seconds, environment)
            then()
            return Completed() if ran else Completed(name="Cached", message="DVC did not need to run it")
        except Stopped:
            return Cancelled(message="stopped; its state is kept, run it again to go on")
        except TransientFailure as error:
            failures += 1
            if failures > stage.demands.retries or stop.wait(delay(failures)):
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


def delay(failures: int) -> float:
    """Seconds to wait after this number of failures."""
    return BACK_OFF * 2.0 ** (failures - 1)


def halved(root: Path, stage: str) -> int | None:
    """Half the micro-batch size of the stage's largest training; None where it trains nothing or it is 1."""
    from dvc.dependency.param import ParamsDependency  # type: ignore[import-untyped]
    from dvc.repo import Repo  # type: ignore[import-untyped]

    from fewstep.core.switches import count_of

    with Repo(str(root)) as repo:
        (definition,) = (each for each in repo.index.stages if each.name == stage)
        params = [dep.read_params() for dep in definition.deps if isinstance(dep, ParamsDependency)]
    sizes = [size for values in params for size in batch_sizes(values)]
    half = count_of("MICRO_BATCH", max(sizes)) // 2 if sizes else 0
    return half or None


def batch_sizes(params: Any) -> Iterator[int]:
    """Batch sizes of all trainings in a stage's parameters, at any depth."""
    if not isinstance(params, dict):
        return
    for key, value in params.items():
        if key == "training" and isinstance(value, dict):
            yield value["batch_size"]
        else:
            yield from batch_sizes(value)
