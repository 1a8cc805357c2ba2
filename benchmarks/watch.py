"""Cost of a look at many watched files: the first look, and one after which nothing has changed.

python benchmarks/watch.py --files 100000 --bytes 100
"""

import argparse
import tempfile
import time
from pathlib import Path

from fewstep.sources.watched import look

PER_FOLDER = 1000


def main() -> None:
    """Make the files, look three times, and print seconds and bytes per file."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--files", type=int, default=100_000)
    top.add_argument("--bytes", type=int, default=100)
    chosen = top.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, known = Path(folder, "images"), Path(folder, "known.sqlite")
        for i in range(chosen.files):
            file = root / str(i // PER_FOLDER) / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(str(i).encode().ljust(chosen.bytes))
        for what in ("first look", "nothing changed", "nothing changed"):
            begun = time.monotonic()
            look([root], known)
            seconds = time.monotonic() - begun
            print(f"{what}: {seconds:.1f} s, {1e6 * seconds / chosen.files:.0f} us a file")
        print(f"hashes kept: {known.stat().st_size / chosen.files:.0f} bytes a file")


if __name__ == "__main__":
    main()
