"""Latency of a pipeline by part: text encoders, denoiser, decoder.

    python -m benchmarks.latency FOLDER[:STEPS] ... [--compile] [--dtype float16] [--runs 20]
    python -m benchmarks.latency --sd15 sdxs [--decoder kl] [--steps 4] [--guidance 7.5]

FOLDER: an exported pipeline, any other diffusers folder, or in the project a model, artifacts/models/NAME.
--sd15: Stable Diffusion 1.5's geometry with random weights, of a size of docs/compression.md.

A run is one call of the stock pipeline, after a warm-up. Around each call of a part the device's queue is
waited for. A part's time is the sum of its calls in a run: a denoiser is called at every step, and with
guidance on twice as many samples. Pipelines take turns, run by run, so that a machine that becomes slower
does so for all of them; the last table has the ratios of each turn to the first pipeline. Steps and guidance
are those of the export's fewstep.json, of the model or of the section `sampling`, else the pipeline's
defaults. The sum leaves out tokenizer and scheduler, as published figures do. --cpu: CPU time instead of
wall-clock time, for a machine on which other work runs (with OMP_NUM_THREADS=1).
"""

import argparse
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.sd15 import DECODERS, PROMPT, pipeline
from diffusers import DiffusionPipeline
from rich.console import Console
from rich.table import Table
from torch import nn

from fewstep.backbones.model import open_model
from fewstep.backbones.pipeline import INDEX, DiffusersBackbone
from fewstep.backbones.registry import open_backbone
from fewstep.checks.stopwatch import synchronize
from fewstep.compression.unet import SIZES
from fewstep.config.base import read
from fewstep.config.sampling import SamplingConfig
from fewstep.core.errors import UserError
from fewstep.core.files import read_json
from fewstep.core.hardware import device
from fewstep.core.paths import TEACHER
from fewstep.core.precision import processor
from fewstep.core.quiet import quiet
from fewstep.diffusion.sampling import Guidance
from fewstep.evaluation.speed import machine
from fewstep.sampling.draw import DECODER

DTYPES = ("float32", "float16", "bfloat16")
AROUND = (5, 50, 95)
"""Percentiles of the runs: the interval's bounds, and the median between them."""
Clock = Callable[[], float]
Call = Mapping[str, Any]
"""Arguments of a pipeline's call except the prompt."""


@dataclass(frozen=True)
class Latency:
    """A part's seconds in each run, `[runs]`; parameters: that run; calls: in a run."""

    parameters: int
    calls: int
    seconds: np.ndarray


def main() -> None:
    """Measure each pipeline and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folders", nargs="*", metavar="FOLDER[:STEPS]")
    add("--sd15", action="append", default=[], choices=SIZES, help="may be repeated")
    add("--decoder", choices=DECODERS, default="tiny", help="of --sd15")
    add("--steps", type=int)
    add("--guidance", type=float)
    add("--images", type=int, default=1, help="per call")
    add("--dtype", choices=DTYPES, help="float16 on a GPU, else float32")
    add("--compile", action="store_true", help="with torch.compile")
    add("--cpu", action="store_true", help="CPU time")
    add("--runs", type=int, default=20)
    add("--warmup", type=int, default=3)
    chosen = parser.parse_args()
    if not chosen.folders and not chosen.sd15:
        parser.error("give a folder or --sd15")
    quiet()
    dtype = chosen.dtype or ("float16" if device().type == "cuda" else "float32")
    changes = {"num_inference_steps": chosen.steps, "guidance_scale": chosen.guidance}
    console = Console()
    console.print(f"{processor()}, threads: {torch.get_num_threads()}; {machine(device())}", highlight=False)
    clock = time.process_time if chosen.cpu else time.perf_counter
    kind, measure = ("compiled" if chosen.compile else "eager"), ("CPU" if chosen.cpu else "wall-clock")
    how = f"{dtype}, {kind}, {measure} time, {chosen.images} at once, {chosen.runs} runs"
    called: dict[str, tuple[Any, Call]] = {}
    try:
        for name, stock, call in pipelines(chosen):
            stock.to(device(), getattr(torch, dtype))
            call = changed(call, changes) | images(stock, chosen.images)
            called[f"{name}: {in_words(call)}"] = stock, call
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    timings = measured(called, chosen.runs, chosen.warmup, chosen.compile, clock)
    for name, parts in timings.items():
        console.print(table(f"{name}, {how}", parts))
    if len(timings) > 1:
        console.print(ratios(timings))


def pipelines(chosen: argparse.Namespace) -> Iterator[tuple[str, Any, Call]]:
    """Name, pipeline and call of everything that is to be measured. Raises UserError."""
    for wanted in chosen.folders:
        folder, _, steps = wanted.rpartition(":") if wanted.rpartition(":")[2].isdigit() else (wanted, "", "")
        stock, call = opened(Path(folder))
        yield folder, stock, changed(call, {"num_inference_steps": int(steps) if steps else None})
    for size in chosen.sd15:
        kind = f"SD 1.5, {size}, decoder {chosen.decoder}"
        yield kind, pipeline(size, chosen.decoder), {"num_inference_steps": 1, "guidance_scale": 1.0}


def opened(folder: Path) -> tuple[Any, Call]:
    """The pipeline in a folder, or that of the chain with its model, and its call. Raises UserError."""
    if folder != TEACHER and (folder / INDEX).is_file():
        exported = folder / "fewstep.json"
        call = read_json(exported)["call"] if exported.is_file() else {}
        return DiffusionPipeline.from_pretrained(folder, local_files_only=True), call
    if not TEACHER.is_dir():
        raise UserError(f"{folder}: no pipeline ({INDEX}); a model of the chain needs {TEACHER} beside it")
    backbone = open_backbone(TEACHER)
    if not isinstance(backbone, DiffusersBackbone):
        raise UserError(f"{folder}: a custom model has no pipeline of diffusers")
    model = open_model(folder, backbone)
    parts = {backbone.net_part: model.net}
    if DECODER in model.parts:
        parts["vae"] = model.parts[DECODER]
    call = dict(backbone.stock_call)
    sampling = read(SamplingConfig, "sampling")
    if model.sampling.guidance is Guidance.SCALE:
        call["guidance_scale"] = sampling.guidance
    call["num_inference_steps"] = model.steps or sampling.steps
    return DiffusionPipeline.from_pretrained(TEACHER, local_files_only=True, **parts), call


def changed(call: Call, changes: Call) -> dict[str, Any]:
    """The call with other values where they are not None; a number of steps replaces an explicit grid."""
    wanted = {name: value for name, value in changes.items() if value is not None}
    grid = ("timesteps", "sigmas") if "num_inference_steps" in wanted else ()
    return {name: value for name, value in call.items() if name not in grid} | wanted


def images(pipeline: Any, count: int) -> dict[str, Any]:
    """Arguments that ask for `count` images."""
    prompted = "prompt" in inspect.signature(pipeline.__call__).parameters
    asked = {"prompt": [PROMPT] * count} if prompted else {"batch_size": count}
    return {**asked, "output_type": "np"}


def measured(
    called: Mapping[str, tuple[Any, Call]],
    runs: int,
    warmup: int = 1,
    compiled: bool = False,
    clock: Clock = time.perf_counter,
) -> dict[str, dict[str, Latency]]:
    """Name -> latency of each part that the call uses, in the order of first use. The pipelines take turns.

    called: name -> (pipeline, call).
    """
    parts: dict[str, dict[str, nn.Module]] = {}
    seconds: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in called}
    records: dict[str, list[dict[str, list[float]]]] = {name: [] for name in called}
    with ExitStack() as stack:
        for name, (pipeline, _) in called.items():
            pipeline.set_progress_bar_config(disable=True)
            components = pipeline.components.items()
            parts[name] = {part: module for part, module in components if isinstance(module, nn.Module)}
            for part, module in parts[name].items():
                stack.enter_context(timed(module, compiled, clock, seconds[name], part))
        for _ in range(warmup + runs):
            for name, (pipeline, call) in called.items():
                seconds[name].clear()
                pipeline(**call)
                records[name].append(dict(seconds[name]))
    return {
        name: {
            part: Latency(
                parameters=sum(weight.numel() for weight in run_by(parts[name][part]).parameters()),
                calls=len(calls),
                seconds=np.array([sum(record[part]) for record in turns[warmup:]]),
            )
            for part, calls in turns[-1].items()
        }
        for name, turns in records.items()
    }


@contextmanager
def timed(
    module: nn.Module, compiled: bool, clock: Clock, seconds: dict[str, list[float]], name: str
) -> Iterator[None]:
    """Appends the seconds of each call of a part to `seconds[name]`.

    Of an autoencoder `decode` is timed, of any other module `forward`.
    """
    method = "decode" if hasattr(module, "decode") else "forward"
    stock = getattr(module, method)
    run = torch.compile(stock) if compiled else stock

    @wraps(stock)
    def with_clock(*args: Any, **kwargs: Any) -> Any:
        synchronize()
        begun = clock()
        result = run(*args, **kwargs)
        synchronize()
        seconds[name].append(clock() - begun)
        return result

    setattr(module, method, with_clock)
    try:
        yield
    finally:
        delattr(module, method)


def run_by(module: nn.Module) -> nn.Module:
    """What a part's timed method runs: of an autoencoder the decoder."""
    return module.decoder if hasattr(module, "decode") else module  # type: ignore[return-value]


def in_words(call: Call) -> str:
    """Steps and guidance of a call."""
    grid = call.get("timesteps") or call.get("sigmas")
    steps = len(grid) if grid else call.get("num_inference_steps", "the default number of")
    return f"{steps} step{'s' * (steps != 1)}, guidance {call.get('guidance_scale', 'by default')}"


def table(title: str, parts: Mapping[str, Latency]) -> Table:
    """A row per part, and their sum."""
    low, _, high = AROUND
    columns = Table("part", "parameters", "calls", "median, ms", f"{low} to {high} % of the runs, ms")
    columns.title = title
    for name, part in parts.items():
        columns.add_row(name, f"{part.parameters:,}", str(part.calls), *milliseconds(part.seconds))
    columns.add_row("sum", "", "", *milliseconds(total(parts)))
    return columns


def ratios(timings: Mapping[str, Mapping[str, Latency]]) -> Table:
    """How many times as fast as the first pipeline each other one is, by turns."""
    low, _, high = AROUND
    columns = Table("pipeline", "times as fast, median", f"{low} to {high} % of the turns")
    (first, base), *others = timings.items()
    columns.title = f"against {first}"
    columns.columns[0].overflow = "fold"
    for name, parts in others:
        least, median, most = np.percentile(total(base) / total(parts), AROUND)
        columns.add_row(name, f"{median:.1f}", f"{least:.1f} - {most:.1f}")
    return columns


def total(parts: Mapping[str, Latency]) -> np.ndarray:
    """Seconds of all parts in each run, `[runs]`."""
    return np.sum([part.seconds for part in parts.values()], axis=0)


def milliseconds(seconds: np.ndarray) -> tuple[str, str]:
    """Median and interval."""
    low, median, high = 1e3 * np.percentile(seconds, AROUND)
    return f"{median:.1f}", f"{low:.1f} - {high:.1f}"


if __name__ == "__main__":
    main()
