"""The training loop that all methods share. It has no code for a specific method."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from fewstep.config.training import TrainingConfig
from fewstep.core.files import read_json, write_json
from fewstep.core.hardware import attention, autocast, deterministic, seed_generator
from fewstep.core.keyed import Key
from fewstep.core.paths import LOGS
from fewstep.core.processes import all_reduce_sum, any_rank, barrier, is_main_process, require
from fewstep.core.progress import LINES, progress
from fewstep.core.switches import switch
from fewstep.training.ahead import Ahead, Parts, parts_of
from fewstep.training.evaluations import Evaluations
from fewstep.training.interrupt import interruptible
from fewstep.training.method import Method
from fewstep.training.optimization import learning_rate
from fewstep.training.records import Step, Update
from fewstep.training.saving import Saver
from fewstep.training.sharding import is_sharded
from fewstep.training.state import State

LOG_EVERY = 10
PREVIEWS = 5
PREVIEW = "preview.json"
"""File in a training's folder: the step of the last preview that was begun."""


def train(method: Method, name: str, seed: int, folder: Path) -> None:
    """Train `method` to its last step, from the newest state in `folder / name` where there is one.

    Afterwards its groups' networks hold the trained weights. A finished training returns at once, so a
    stage may train several methods in turn and be killed between them.

    Raises UserError when a loss is not finite or explodes; KeyboardInterrupt, after saving, on SIGINT.
    """
    deterministic()
    barrier()
    accelerator = Accelerator(
        # `autocast` sets the precision instead, because networks that are not trained need it too.
        mixed_precision="no",
        # None, because Accelerator warns about an empty list.
        log_with=[tracker for tracker in switch("TRACKERS", "tensorboard").split(",") if tracker] or None,
        project_dir=LOGS,
    )
    training = method.training
    require(accelerator.distributed_type, accelerator.num_processes, training.batch_size)
    state = State(method, folder / name)
    state.resume()
    evaluations = Evaluations(state)
    drawn = drawn_until(state.folder)
    # From here on the main process may replace files that the other processes have just read.
    barrier()
    with unless_it_fails(accelerator):
        accelerator.init_trackers(name)
    try:
        with (
            interruptible() as interrupted,
            progress(name, training.steps, state.step) as report,
            Saver(state) as saver,
            Ahead(method) as batches,
        ):
            if evaluations.due:  # a kill may have lost this measurement
                evaluate(evaluations, accelerator)
            values, since, before = state.records.newest, time.monotonic(), state.step
            while state.step < training.steps:
                try:
                    update(state, name, seed, batches.parts(state.step), training.batch_size)
                except Exception:
                    # A loss that is not finite may be the cause, in a step that has not been read yet.
                    state.records.read()
                    raise
                logs, shows = (state.step - 1) % LOG_EVERY == 0, state.step % every(PREVIEWS, training) == 0
                last = state.step == training.steps
                if logs or last or state.step % every(LINES, training) == 0:
                    values = state.records.read()
                if logs:
                    rate = (state.step - before) * training.batch_size / (time.monotonic() - since)
                    since, before = time.monotonic(), state.step
                    with unless_it_fails(accelerator):
                        accelerator.log(values.logged | {"samples_per_second": rate}, step=state.step - 1)
                report(state.step, values.note)
                # Every rank has to take the same branch.
                arrived, due, shown = any_rank(
                    interrupted(),
                    # Evaluations and previews may take minutes.
                    saver.due(early=shows or evaluations.due),
                    shows and is_main_process() and bool(accelerator.trackers),
                )
                stop, shown = arrived and not last, shown and state.step > drawn
                if not (stop or due or last or shown or evaluations.due):
                    continue
                values = state.records.read()
                if stop or due or last:
                    saver.save()
                if stop:
                    saver.wait()
                    # A rank that exits early makes the launcher kill rank 0 while it saves.
                    barrier()
                    raise KeyboardInterrupt
                if evaluations.due:
                    evaluate(evaluations, accelerator)
                if shown:
                    show(state, accelerator)
                since, before = time.monotonic(), state.step
    finally:
        # Not `end_training`: it would also destroy the process group, which the next training needs.
        with unless_it_fails(accelerator):
            for tracker in accelerator.trackers:
                tracker.finish()
    state.finish(evaluations.weights())


def every(times: int, training: TrainingConfig) -> int:
    """Steps between events of which there are `times` in a training."""
    return max(training.steps // times, 1)


def evaluate(evaluations: Evaluations, accelerator: Accelerator) -> None:
    """Measure the current step and log what was measured."""
    begun = time.monotonic()
    with torch.no_grad(), autocast():
        values = evaluations.measure()
    if values:
        seconds = {"evaluation/seconds": time.monotonic() - begun}
        with unless_it_fails(accelerator):
            accelerator.log({**values, **seconds}, step=evaluations.state.step)


def advance(state: State, name: str, seed: int, batch_size: int) -> tuple[dict[str, float], dict[str, float]]:
    """One step, with its batch prepared now and its values read at once; `train` does both apart.

    Returns each group's loss, and everything that is logged. Raises UserError as `train` does.
    """
    update(state, name, seed, parts_of(state.method, state.step, batch_size), batch_size)
    values = state.records.read()
    return values.losses, values.logged


def update(state: State, name: str, seed: int, parts: Parts, batch_size: int) -> None:
    """One step on the global batch, of which `parts` are this process's micro-batches.

    Does not wait for the device, except in float16; `state.records` has the values.
    """
    step, method = state.step, state.method
    # Dropout inside networks draws from the global generator. Keyed by step, it is the same after a resume.
    seed_generator(Key(seed, f"{name}/dropout").seed32(step))
    prepared = []
    for share, batch in parts:
        with torch.no_grad(), autocast():
            prepared.append((share, method.prepare(batch)))
    updates = []
    for label in method.schedule(step):
        with state.turn(label) as group:
            terms, values = accumulate(method, label, prepared, step, group.scaler)
            all_reduce_sum([gradient for gradient in group.gradients() if not is_sharded(gradient)])
            norm, overflown = group.clipped_norm()
            rate = learning_rate(group.config, step, method.training.steps)
            group.update(rate, overflown)
            if not overflown:
                with torch.no_grad():
                    method.updated(label)
        updates.append(Update(label, terms, values, norm, rate, overflown))
    positions = range(step * batch_size, (step + 1) * batch_size)
    state.records.add(Step(step, positions, updates))
    state.step += 1


def accumulate(
    method: Method, label: str, parts: Parts, step: int, scaler: torch.amp.GradScaler
) -> tuple[list[str], Tensor]:
    """Sum a group's gradients over micro-batches (share of the rows, batch). Returns its loss terms."""
    terms: dict[str, Tensor] = {}
    for share, batch in parts:
        with autocast():
            losses = method.losses(label, batch, step)
        with attention():
            torch.autograd.backward(scaler.scale(share * torch.stack(list(losses.values())).sum()))
        for term, value in losses.items():
            terms[term] = share * value.detach() + terms.get(term, 0.0)
    values = torch.stack(list(terms.values()))
    all_reduce_sum([values])
    return list(terms), values


@contextmanager
def unless_it_fails(accelerator: Accelerator) -> Iterator[None]:
    """Tracker failures (a full disk, a lost server) are reported once; training continues without them."""
    try:
        yield
    except Exception as error:
        print(f"warning: the trackers failed and are left off: {error!r}", file=sys.stderr, flush=True)
        accelerator.trackers = []


def show(state: State, accelerator: Accelerator) -> None:
    """Log the method's images to the trackers that take images; rank 0 does.

    Every rank draws them, because an FSDP-sharded network has to be called by all ranks. A resumed training
    does not repeat the preview during which it ended: it may be the cause, and no result depends on it.
    """
    if is_main_process():
        write_json(state.folder / PREVIEW, {"step": state.step})
    with torch.no_grad(), autocast():
        images = state.method.preview()
    if images is None or not is_main_process():
        return
    pixels = ((images.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).float().cpu().numpy()
    with unless_it_fails(accelerator):
        for tracker in accelerator.trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({"images": pixels}, step=state.step, dataformats="NHWC")


def drawn_until(folder: Path) -> int:
    """Step of the last preview that was begun in a training's folder; 0: none."""
    file = folder / PREVIEW
    return int(read_json(file)["step"]) if file.exists() else 0
