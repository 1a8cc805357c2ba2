"""The one training loop. It knows no method by name."""

import time
from pathlib import Path

import torch
from accelerate import Accelerator

from fewstep.config.base import switch
from fewstep.hardware import computing, deterministic, mixed_precision
from fewstep.keyed import Key
from fewstep.layout import LOGS
from fewstep.processes import add_up, any_of, is_main, own, require, wait
from fewstep.progress import progress
from fewstep.training.interrupt import interruptible
from fewstep.training.method import Method, Rows
from fewstep.training.optimization import learning_rate, weights_of
from fewstep.training.state import State

LOG_EVERY = 10
PREVIEWS = 5


def train(method: Method, name: str, seed: int, folder: Path) -> None:
    """Train `method` to its end, from the newest state in `folder / name` where there is one.

    Afterwards its players' networks hold the trained weights. A finished training returns at once, so a
    stage may train several methods in turn and be killed between them.

    Raises UserError when a loss is not finite or explodes; KeyboardInterrupt, after saving, on SIGINT.
    """
    deterministic()
    wait()
    accelerator = Accelerator(
        mixed_precision=mixed_precision(),
        log_with=[tracker for tracker in switch("TRACKERS", "tensorboard").split(",") if tracker],
        project_dir=LOGS,
    )
    training = next(iter(method.players.values())).training
    require(accelerator.distributed_type, accelerator.num_processes, training.batch_size)
    state = State(method, accelerator, folder / name)
    state.resume()
    # From here on the main process may replace what the others have just read.
    wait()
    patience = float(switch("SAVE_EVERY_SECONDS", "30"))
    accelerator.init_trackers(name)
    try:
        with interruptible() as interrupted, progress(name, training.steps, state.step) as report:
            saved = time.monotonic()
            while state.step < training.steps:
                losses = advance(state, name, seed, training.batch_size)
                report(state.step, "  ".join(f"{label} loss {value:.4g}" for label, value in losses.items()))
                if state.step % max(training.steps // PREVIEWS, 1) == 0:
                    show(state)
                stop = any_of(interrupted()) and state.step < training.steps
                if stop or state.step == training.steps or time.monotonic() - saved > patience:
                    state.save()
                    saved = time.monotonic()
                if stop:
                    # Ending early, a process would have the launcher end the one that still writes.
                    wait()
                    raise KeyboardInterrupt
    finally:
        # Not `end_training`: it would also part the processes, which a next training needs together.
        for tracker in accelerator.trackers:
            tracker.finish()
    state.finish()


def advance(state: State, name: str, seed: int, batch_size: int) -> dict[str, float]:
    """One step on the global batch. Returns each player's loss."""
    step, method, accelerator = state.step, state.method, state.accelerator
    begun = time.monotonic()
    positions = range(step * batch_size, (step + 1) * batch_size)
    # Dropout inside networks draws from the global generator; keyed, a resumed step is the same step.
    torch.manual_seed(Key(seed, f"{name}/dropout").seed32(step))
    rows = Rows(step, own(positions))
    share = len(rows.positions) / batch_size
    with computing(accelerator.mixed_precision), torch.no_grad():
        batch = method.prepare(method.batch(rows))
    losses: dict[str, float] = {}
    logged: dict[str, float] = {}
    for label in method.turns(step):
        player = method.players[label]
        with computing(accelerator.mixed_precision):
            terms = method.losses(label, batch)
        loss = torch.stack(list(terms.values())).sum()
        values = torch.stack([value.detach() for value in terms.values()])
        add_up([values], share)
        losses[label] = state.guard(f"{label} loss", values.sum(), positions)
        accelerator.backward(loss)
        weights = weights_of(player)
        add_up([weight.grad for weight in weights.values() if weight.grad is not None], share)
        norm = accelerator.clip_grad_norm_(list(weights.values()), player.training.clip)
        rate = learning_rate(player.training, step)
        logged |= {f"{label}/{term}": value for term, value in zip(terms, values.tolist(), strict=True)} | {
            f"{label}/loss": losses[label],
            f"{label}/gradient_norm": state.guard(f"{label} gradient norm", norm, positions),
            f"{label}/learning_rate": rate,
        }
        for optimizer in state.optimizers[label]:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        if label in state.averages:
            state.averages[label].update(weights, step)
    state.step += 1
    if step % LOG_EVERY == 0:
        logged["samples_per_second"] = batch_size / (time.monotonic() - begun)
        accelerator.log(logged, step=step)
    return losses


def show(state: State) -> None:
    """Hand the method's pictures to the trackers that take pictures."""
    if not (state.accelerator.trackers and is_main()):
        return
    with torch.no_grad(), computing(state.accelerator.mixed_precision):
        pictures = state.method.preview()
    if pictures is None:
        return
    pixels = ((pictures.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).float().cpu().numpy()
    for tracker in state.accelerator.trackers:
        if hasattr(tracker, "log_images"):
            tracker.log_images({"pictures": pixels}, step=state.step, dataformats="NHWC")
