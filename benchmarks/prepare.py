"""Images per second of `prepare_data`, by number of workers, against a plain Pillow loop.

    python -m benchmarks.prepare [--images 512] [--resolution 512] [--workers 1 2] [--folder IMAGES]

The plain loop does what a script would: open, turn upright, crop and resize, write a PNG of the same
compression. It checks, hashes and indexes nothing. Without --folder the images are those of scikit-image
and scikit-learn as JPEGs of a megapixel. Each side runs once per round, in turn; the median counts. Prints
JSON: images per second, CPU time per image (which other load on the machine hardly changes), the data set's
hash for each number of workers, the load before, the memory of the largest worker, and the bytes that
the removal of duplicates takes per image.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread

import psutil
from PIL import Image, ImageOps
from tests.photos import PHOTOGRAPHS, crop_of

from fewstep.artifacts.manifest import sha256
from fewstep.config.data import DataConfig
from fewstep.preparation.filters import Duplicates
from fewstep.preparation.prepare import prepare
from fewstep.preparation.split import digest_of

SIDES = (1152, 896)
"""Size of the photographs that are made, pixels."""
COUNTED = 100_000
"""Images whose hashes are held to measure their memory."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        source = chosen.folder or Path(place, "photographs")
        if chosen.folder is None:
            make_photographs(source, chosen.images)
        config = DataConfig(
            source="folder", path=str(source), resolution=chosen.resolution, count=chosen.images
        )
        hashes, memory = {}, Memory()

        def prepared(workers: int) -> None:
            os.environ["FEWSTEP_WORKERS"] = str(workers)
            with memory:
                prepare(config, 0, Path(place, "data"))
            hashes[workers] = sha256(Path(place, "data", "index.json"))

        sides: dict[str, Callable[[], None]] = {
            "plain Pillow loop": lambda: plain(source, Path(place, "plain"), config),
            **{f"{workers} workers": partial(prepared, workers) for workers in chosen.workers},
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        busy: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(chosen.rounds):
            for name, run in sides.items():
                begun, used = time.monotonic(), cpu_seconds()
                run()
                seconds[name].append(time.monotonic() - begun)
                busy[name].append(cpu_seconds() - used)
    rates = {name: chosen.images / statistics.median(each) for name, each in seconds.items()}
    costs = {name: 1000 * statistics.median(each) / chosen.images for name, each in busy.items()}
    print(
        json.dumps(
            {
                "cores": os.cpu_count(),
                "load before": load,
                "images": chosen.images,
                "resolution": chosen.resolution,
                "images per second": rates,
                "CPU milliseconds per image": costs,
                "sha256 of index.json": hashes,
                "MiB of the largest worker": memory.largest / 2**20,
                "bytes per image to find duplicates": bytes_per_image(),
            },
            indent=2,
        )
    )


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Memory:
    """Watches child processes while it is entered. largest: memory of the largest of them, bytes."""

    def __init__(self) -> None:
        self.largest = 0
        self._stop = Event()

    def __enter__(self) -> None:
        self._stop.clear()
        self._thread = Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for child in psutil.Process().children():
                with suppress(psutil.Error):
                    self.largest = max(self.largest, child.memory_info().rss)


def plain(source: Path, out: Path, config: DataConfig) -> None:
    """What a script would do."""
    out.mkdir(exist_ok=True)
    files = [file for file in sorted(source.iterdir()) if file.suffix != ".txt"]
    for file in files[: config.count]:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        square = ImageOps.fit(upright, (config.resolution, config.resolution), Image.Resampling.LANCZOS)
        square.save(out / f"{file.stem}.png", compress_level=1)


def make_photographs(folder: Path, count: int) -> None:
    """`count` distinct JPEGs with captions; photograph i depends on i alone."""
    folder.mkdir(parents=True)
    originals = []
    for path, subject in PHOTOGRAPHS.items():
        with Image.open(path) as image:
            originals.append((image.convert("RGB"), subject))
    for i in range(count):
        original, subject = originals[i % len(originals)]
        crop_of(original, i).resize(SIDES, Image.Resampling.BICUBIC).save(folder / f"{i:06d}.jpg", quality=90)
        (folder / f"{i:06d}.txt").write_text(f"{subject}, number {i}")


def bytes_per_image() -> float:
    """Memory of the hashes of all images, which the stage holds until it ends."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    duplicates = Duplicates()
    for i in range(COUNTED):
        duplicates.ordinal(digest_of(str(i).encode()), str(i))
    after, _ = tracemalloc.get_traced_memory()
    return (after - before) / COUNTED


if __name__ == "__main__":
    main()
