"""The one training loop. It knows no method by name."""

import time
from pathlib import Path

import torch
from accelerate import Accelerator

from fewstep.config.base import switch
from fewstep.hardware import computing, deterministic, mixed_precision
from fewstep.keyed import Key
from fewstep.layout import LOGS
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
    accelerator = Accelerator(
        mixed_precision=mixed_precision(),
        log_with=[tracker for tracker in switch("TRACKERS", "tensorboard").split(",") if tracker],
        project_dir=LOGS,
    )
    state = State(method, accelerator, folder / name)
    state.resume()
    training = next(iter(method.players.values())).training
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
                stop = interrupted() and state.step < training.steps
                if stop or state.step == training.steps or time.monotonic() - saved > patience:
                    state.save()
                    saved = time.monotonic()
                if stop:
                    raise KeyboardInterrupt
    finally:
        accelerator.end_training()
    state.finish()


def advance(state: State, name: str, seed: int, batch_size: int) -> dict[str, float]:
    """One step on the global batch. Returns each player's loss."""
    step, method, accelerator = state.step, state.method, state.accelerator
    begun = time.monotonic()
    positions = range(step * batch_size, (step + 1) * batch_size)
    # Dropout inside networks draws from the global generator; keyed, a resumed step is the same step.
    torch.manual_seed(Key(seed, f"{name}/dropout").seed32(step))
    with computing(accelerator.mixed_precision), torch.no_grad():
        batch = method.prepare(
            method.batch(Rows(step, positions[accelerator.process_index :: accelerator.num_processes]))
        )
    losses: dict[str, float] = {}
    logged: dict[str, float] = {}
    for label in method.turns(step):
        player = method.players[label]
        with computing(accelerator.mixed_precision):
            terms = method.losses(label, batch)
        loss = torch.stack(list(terms.values())).sum()
        losses[label] = state.guard(f"{label} loss", loss, positions)
        accelerator.backward(loss)
        weights = weights_of(player)
        norm = accelerator.clip_grad_norm_(list(weights.values()), player.training.clip)
        rate = learning_rate(player.training, step)
        logged |= {f"{label}/{term}": float(value.detach()) for term, value in terms.items()} | {
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
    if not state.accelerator.trackers:
        return
    with torch.no_grad(), computing(state.accelerator.mixed_precision):
        pictures = state.method.preview()
    if pictures is None:
        return
    pixels = ((pictures.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).float().cpu().numpy()
    for tracker in state.accelerator.trackers:
        if hasattr(tracker, "log_images"):
            tracker.log_images({"pictures": pixels}, step=state.step, dataformats="NHWC")
