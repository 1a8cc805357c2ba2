"""DVC's overhead for many triplets: the stages of dvc.yaml with empty shards in place of drawn ones.

    python benchmarks/groups.py [--triplets 1000000] [--shard-size 4000] [--groups 8]

Makes a project in a temporary folder whose stages `generate_triplets@GROUP` write small shards, and runs
`dvc repro` there. Prints the lines of dvc.lock, and the seconds of `dvc status` and of `dvc repro -s`
without a change, as JSON.
The hashing of real shards is not part of it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from fewstep.core.paths import TRIPLETS

ROOT = Path(__file__).parents[1]
SCRIPT = """
import json, sys
from pathlib import Path
group, shards, groups = map(int, sys.argv[1:])
for shard in range(group, shards, groups):
    folder = Path("artifacts/triplets", str(group), str(shard))
    folder.mkdir(parents=True)
    for name in ("triplets.safetensors", "prompts.json", "manifest.json"):
        (folder / name).write_text(json.dumps([shard, name]))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--triplets", type=int, default=1_000_000)
    parser.add_argument("--shard-size", type=int, default=4000)
    parser.add_argument("--groups", type=int, default=8)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project(folder, chosen.triplets // chosen.shard_size, chosen.groups)
        figures = {"dvc repro, all groups, s": seconds(folder, "repro")}
        figures["dvc status, s"] = seconds(folder, "status")
        figures["dvc repro -s without a change, s"] = seconds(folder, "repro", "-s", "generate_triplets@0")
        figures["lines of dvc.lock"] = len((folder / "dvc.lock").read_text().splitlines())
    print(json.dumps(figures, indent=2))


def project(folder: Path, shards: int, groups: int) -> None:
    """A DVC project with the stage `generate_triplets`, and its params and dependencies on this project."""
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["generate_triplets"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["triplets"] |= {"count": shards, "shard_size": 1, "groups": [*range(groups)]}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "draw.py").write_text(SCRIPT)
    deps = [dep for dep in stage["do"]["deps"] if "$" not in dep]
    for dep in deps:
        file = folder / dep
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dep)
    stage["do"] |= {
        "cmd": f"{sys.executable} draw.py ${{item}} {shards} {groups}",
        "deps": deps,
        "outs": [f"{TRIPLETS}/${{item}}"],
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"generate_triplets": stage}}))
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=folder, check=True)


def seconds(folder: Path, *command: str) -> float:
    """How long a command of DVC takes, seconds."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dvc", *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
