"""The training loop that all methods share. It has no code for a specific method."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from fewstep.core.files import read_json, write_json
from fewstep.core.hardware import attention, autocast, deterministic, micro_batches, process
from fewstep.core.keyed import Key
from fewstep.core.paths import LOGS
from fewstep.core.processes import all_reduce_sum, any_rank, barrier, is_main_process, local_slice, require
from fewstep.core.progress import progress
from fewstep.core.switches import switch
from fewstep.training.evaluations import Evaluations
from fewstep.training.interrupt import interruptible
from fewstep.training.method import Method, Rows
from fewstep.training.optimization import learning_rate
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
        ):
            if evaluations.due:  # a kill may have lost this measurement
                evaluate(evaluations, accelerator)
            while state.step < training.steps:
                losses, logged = advance(state, name, seed, training.batch_size)
                if (state.step - 1) % LOG_EVERY == 0:
                    with unless_it_fails(accelerator):
                        accelerator.log(logged, step=state.step - 1)
                report(state.step, "  ".join(f"{label} loss {value:.4g}" for label, value in losses.items()))
                shows = state.step % max(training.steps // PREVIEWS, 1) == 0 and state.step > drawn
                # Every rank has to take the same branch.
                arrived, due, shown = any_rank(
                    interrupted(),
                    # Evaluations and previews may take minutes.
                    saver.due(early=shows or evaluations.due),
                    shows and is_main_process() and bool(accelerator.trackers),
                )
                stop = arrived and state.step < training.steps
                if stop or due or state.step == training.steps:
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
    finally:
        # Not `end_training`: it would also destroy the process group, which the next training needs.
        with unless_it_fails(accelerator):
            for tracker in accelerator.trackers:
                tracker.finish()
    state.finish(evaluations.weights())


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
    """One step on the global batch. Returns each group's loss, and everything that is logged."""
    step, method = state.step, state.method
    begun = time.monotonic()
    positions = range(step * batch_size, (step + 1) * batch_size)
    # Dropout inside networks draws from the global generator. Keyed by step, it is the same after a resume.
    torch.manual_seed(Key(seed, f"{name}/dropout").seed32(step))
    parts = []
    for few, share in portions(positions):
        with torch.no_grad(), autocast():
            parts.append((share, method.prepare(method.batch(Rows(step, few)))))
    losses: dict[str, float] = {}
    logged: dict[str, float] = {}
    for label in method.schedule(step):
        with state.turn(label) as group:
            terms = accumulate(method, label, parts, step, group.scaler)
            losses[label] = state.guard(f"{label} loss", sum(terms.values()), positions)
            all_reduce_sum([gradient for gradient in group.gradients() if not is_sharded(gradient)])
            norm, overflown = group.clipped_norm()
            if not overflown:
                state.guard(f"{label} gradient norm", norm, positions)
            rate = learning_rate(group.config, step, method.training.steps)
            group.update(rate, overflown)
            if not overflown:
                with torch.no_grad():
                    method.updated(label)
        logged |= {f"{label}/{term}": value for term, value in terms.items()} | {
            f"{label}/loss": losses[label],
            f"{label}/gradient_norm": norm,
            f"{label}/learning_rate": rate,
        }
    state.step += 1
    logged["samples_per_second"] = batch_size / (time.monotonic() - begun)
    return losses, logged


def accumulate(
    method: Method, label: str, parts: Sequence[tuple[float, Any]], step: int, scaler: torch.amp.GradScaler
) -> dict[str, float]:
    """Sum a group's gradients over micro-batches (share of the rows, batch). Returns its loss terms."""
    terms: dict[str, Tensor] = {}
    for share, batch in parts:
        with autocast():
            found = method.losses(label, batch, step)
        with attention():
            torch.autograd.backward(scaler.scale(share * torch.stack(list(found.values())).sum()))
        for term, value in found.items():
            terms[term] = share * value.detach() + terms.get(term, 0.0)
    values = torch.stack(list(terms.values()))
    all_reduce_sum([values])
    return dict(zip(terms, values.tolist(), strict=True))


def portions(positions: Sequence[int]) -> Iterator[tuple[Sequence[int], float]]:
    """This process's micro-batches of a step, each with its share of the batch's rows.

    All processes yield equally many, because an FSDP-sharded network has to be called by all ranks. Where
    rows divide unevenly, a process that would have fewer yields its first row once more, with share 0.
    """
    mine = local_slice(positions)
    for few in micro_batches(mine):
        yield few, len(few) / len(positions)
    largest = positions[:: process().num_processes]
    missing = len([*micro_batches(largest)]) - len([*micro_batches(mine)])
    yield from [(mine[:1], 0.0)] * missing


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
