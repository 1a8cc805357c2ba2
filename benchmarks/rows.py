"""Memory of a process that reads all rows of a large shard of latents, in keyed order.

    python -m benchmarks.rows [--size 2000] [--rows 64]

Writes a shard of `--size` MB, reads it in a process of its own in batches of `--rows`, and prints JSON: the
shard's size, the rows per second, and in MB what the process itself has filled (RssAnon) before and after,
and the pages of files that were resident at its end (RssFile), which the system drops where memory is short.
The shard may be larger than the memory that a cgroup allows the process. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tests.peak import status

from fewstep.core.keyed import Key
from fewstep.data.prompted import PromptedFile, collate_rows, save_prompted
from fewstep.data.stream import Stream

LATENT, TEXT = (4, 64, 64), (77, 768)
"""Shapes of Stable Diffusion 1.5 at 512 px."""
BYTES = 2 * sum(torch.Size(shape).numel() for shape in (LATENT, TEXT))


def write(path: Path, rows: int) -> None:
    """A shard of `rows` rows with a prompt each."""
    save_prompted(
        path,
        torch.randn(rows, *LATENT, dtype=torch.float16),
        torch.arange(rows),
        {"text": torch.randn(rows, *TEXT, dtype=torch.float16)},
        "float16",
        {},
    )


def read(path: Path, rows: int, batch: int) -> dict[str, float]:
    """Read every row once; memory in MB."""
    stream = Stream([rows], lambda _: PromptedFile(path), Key(0, "rows"))
    before, begun = status("RssAnon"), time.perf_counter()
    for first in range(0, rows - batch + 1, batch):
        collate_rows(stream.rows(range(first, first + batch)), torch.device("cpu"))
    seconds = time.perf_counter() - begun
    return {
        "shard": path.stat().st_size / 1e6,
        "rows_per_second": round(rows / seconds),
        "own_before": before / 1e6,
        "own_after": status("RssAnon") / 1e6,
        "mapped": status("RssFile") / 1e6,
    }


def main() -> None:
    """Write the shard, and read it in another process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=float, default=2000, help="MB")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    rows = int(chosen.size * 1e6 / BYTES)
    if chosen.read:
        print(json.dumps(read(chosen.read, rows, chosen.rows)))
        return
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder, "shard.safetensors")
        write(shard, rows)
        command = [sys.executable, "-m", "benchmarks.rows", "--read", str(shard)]
        options = ["--size", str(chosen.size), "--rows", str(chosen.rows)]
        subprocess.run([*command, *options], check=True)


if __name__ == "__main__":
    main()
