"""Speed and memory use of sampling.

These figures vary between machines and between runs. They go to logs, never into an artifact.
"""

import os
import platform
import resource
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from fewstep.evaluation.schema import Speed


def measure_speed(
    draw: Callable[[int], Any], batch_size: int, device: torch.device, seconds: float = 1.0
) -> Speed:
    """Time `draw(images)`, after a warm-up, for about `seconds` each at one image and at `batch_size`.

    draw: makes that many images on `device`. A call longer than `seconds` is timed once.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    single, batch = (median_seconds(draw, images, seconds) for images in (1, batch_size))
    return Speed(
        latency_s=single,
        pictures_per_second=batch_size / batch,
        peak_memory_bytes=peak_memory_bytes(device),
    )


def median_seconds(draw: Callable[[int], Any], images: int, seconds: float) -> float:
    """Median duration of `draw(images)`, including the work queued on the device."""
    # Not its class Timer, which times ten calls of a fast `draw` as one, and estimates their number first.
    from torch.utils.benchmark import timer  # where CUDA_HOME is set, the import prints "no GPU"

    draw(images)
    durations: list[float] = []
    while sum(durations) < seconds:
        begun = timer()
        draw(images)
        durations.append(timer() - begun)
    return median(durations)


def memory_counter(device: torch.device) -> str:
    """Name of the counter of `peak_memory_bytes`: tensors on a GPU, the whole process elsewhere."""
    return "torch.cuda.max_memory_allocated" if device.type == "cuda" else "ru_maxrss"


def peak_memory_bytes(device: torch.device) -> int:
    """GPU: since `measure_speed` began. CPU: since the process began, so it never decreases."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine(device: torch.device) -> str:
    """The hardware and software of the measurement, for a human reader."""
    processor = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name(device)}, {processor}" if device.type == "cuda" else processor
