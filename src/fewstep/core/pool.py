"""Runs a function on many items in worker processes; results come in the order of the items.

A worker is a fresh interpreter that imports the module of the function and little else. It is not forked,
since this process may have threads, and does not import the stage's script. `multiprocessing.Pool` never
returns the item of a worker that was killed. `ProcessPoolExecutor` does not report which item that was.
"""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection, Pipe, wait
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

from fewstep.core.errors import UserError
from fewstep.core.switches import count_of

T = TypeVar("T")
R = TypeVar("R")
ATTEMPTS = 2
"""How many workers may die of an item before it is reported."""
SERVE = "from fewstep.core.pool import serve; serve({})"


def workers() -> int:
    """FEWSTEP_WORKERS; by default, the number of cores that this process may use."""
    # macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count_of("WORKERS", cores)


@dataclass
class Job:
    """A number of an item, the item, and how many workers died of it."""

    number: int
    item: Any
    deaths: int = 0


class Worker:
    """One process and the job that it does, if any."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        self.job: Job | None = None
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment.setdefault("OMP_NUM_THREADS", "1")  # all cores have a worker
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", SERVE.format(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
            )

    def start(self, function: Callable[[Any], Any], job: Job) -> None:
        """Send a job. A worker that is dead is noticed when its answer is awaited."""
        self.job = job
        with suppress(OSError):
            self.connection.send((function, job.item))

    def answer(self) -> tuple[bool, Any] | None:
        """Whether the job succeeded, and its result or exception; None where the worker died."""
        try:
            succeeded, value = self.connection.recv()
        except (EOFError, OSError):
            return None
        return succeeded, value

    def kill(self) -> int:
        """End the process, whatever it does. Returns its exit status."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class Pool:
    """At most `size` worker processes, each started when there is an item for it; 1: no process but this one.

    They end with the context, and also when this process is killed.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.kill()

    def each(
        self, function: Callable[[T], R], items: Iterable[T], name: Callable[[T], str] = str
    ) -> Generator[R, None, None]:
        """`function` of each item, in order. An item is taken from `items` when a worker is free for it.

        A single item is worked on in this process.

        function, items, results: picklable, a function by its name in its module. name: of an item, for
        errors. Closing the iterator ends the jobs that run.

        Raises whatever `function` raises first: a UserError as it is, any other as a RuntimeError with its
        traceback. An item of which a worker dies is tried once more; then UserError with its name.
        """
        items = iter(items)
        first = list(islice(items, 2))
        items = chain(first, items)
        if self._size == 1 or len(first) < 2:
            yield from map(function, items)
            return
        done: dict[int, R] = {}
        waiting = (Job(number, item) for number, item in enumerate(items))
        due = 0
        try:
            while True:
                while len(busy := self._busy()) < self._size and (job := next(waiting, None)):
                    self._free().start(function, job)
                if not busy:
                    return
                for ready in wait(list(busy)):
                    self._receive(busy[ready], function, name, done)
                while due in done:
                    yield done.pop(due)
                    due += 1
        finally:
            for worker in self._busy().values():
                self._end(worker)

    def _busy(self) -> dict[Any, Worker]:
        """The workers that have a job, by their connections."""
        return {worker.connection: worker for worker in self._workers if worker.job}

    def _free(self) -> Worker:
        """A worker without a job; a new one where there is none."""
        for worker in self._workers:
            if not worker.job:
                return worker
        self._workers.append(Worker())
        return self._workers[-1]

    def _receive(
        self, worker: Worker, function: Callable[[T], R], name: Callable[[T], str], done: dict[int, R]
    ) -> None:
        """Store a result, raise an error, or give the job of a dead worker to a new one."""
        job, answer = worker.job, worker.answer()
        assert job is not None
        if answer is None:
            status = self._end(worker)
            job.deaths += 1
            if job.deaths == ATTEMPTS:
                raise UserError(
                    f"{name(job.item)}: {ATTEMPTS} processes that worked on it ended ({how(status)}). If the "
                    f"machine is out of memory, set FEWSTEP_WORKERS below {self._size}; see docs/machine.md"
                )
            self._free().start(function, job)
            return
        succeeded, value = answer
        worker.job = None
        if not succeeded:
            raise value
        done[job.number] = value

    def _end(self, worker: Worker) -> int:
        self._workers.remove(worker)
        return worker.kill()


def how(status: int) -> str:
    """An exit status in words."""
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"


def serve(descriptor: int) -> None:
    """Do the jobs that come through a connection, until it is closed. This is what a worker runs.

    A thread waits for jobs, so that the process ends at once when the one that sends them has ended.
    """
    # Ctrl-C reaches all processes of a terminal; the one that started the others ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    jobs: SimpleQueue[tuple[Callable[[Any], Any], Any]] = SimpleQueue()
    Thread(target=receive, args=(connection, jobs), daemon=True).start()
    while True:
        function, item = jobs.get()
        try:
            answer = True, function(item)
        except UserError as error:
            answer = False, error
        except Exception:
            answer = False, RuntimeError(traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:  # the process that sent the job has ended
            return


def receive(connection: Connection, jobs: SimpleQueue[Any]) -> None:
    """Queue jobs; end the process when there can be no more."""
    while True:
        try:
            jobs.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)
        except BaseException:  # a module of the job cannot be imported, for example
            traceback.print_exc()
            os._exit(1)
