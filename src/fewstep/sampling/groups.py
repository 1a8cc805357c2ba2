"""Draws a group of triplet shards. Finished shards are kept, verified and used again under any grouping.

A finished shard is kept in the folder `shards` of the work, which all groups share. The group's artifact
has hard links to its files until DVC replaces them by its own copies or links.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from fewstep.artifacts.manifest import NAME, Manifest
from fewstep.artifacts.workspace import SHARDS, Workspace
from fewstep.config.triplets import TripletsConfig
from fewstep.core.errors import UserError
from fewstep.core.files import link_or_copy, whole_folder
from fewstep.core.processes import barrier, is_main_process
from fewstep.sampling.draw import Sampler
from fewstep.sampling.triplets import write_triplets


def write_group(
    out: Path,
    sampler: Sampler,
    config: TripletsConfig,
    group: int,
    seed: int,
    work: Workspace,
    inputs: Mapping[str, Path],
) -> None:
    """The shards of one group, as the folders `out/SHARD`. Arguments: those of `write_triplets`."""
    folders = {shard: work.folder / SHARDS / str(shard) for shard in config.shards(group)}
    for shard, folder in folders.items():
        if is_main_process():
            check(folder, work, inputs)
        barrier()  # every process sees the same shards
        if not folder.exists():
            write_triplets(folder, sampler, config, shard, seed, work, inputs)
    if not is_main_process():
        return
    with whole_folder(out) as staging:
        for shard, folder in folders.items():
            (staging / str(shard)).mkdir()
            for file in folder.iterdir():
                link_or_copy(file, staging / str(shard) / file.name)


def check(folder: Path, work: Workspace, inputs: Mapping[str, Path]) -> None:
    """Verify a finished shard, if there is one. It is deleted where a hash differs.

    The manifest of a shard that FEWSTEP_RESUME took over gets the differences.
    """
    if not folder.exists():
        return
    try:
        manifest = Manifest.open(folder, "triplets")
    except UserError as error:
        print(f"draws shard {folder.name} again: {error}", flush=True)
        shutil.rmtree(folder)
        return
    if manifest.facts.get("resumed", []) != work.metadata.get("resumed", []):
        (folder / NAME).unlink()
        Manifest.seal(folder, "triplets", {**manifest.facts, **work.metadata}, inputs)
    print(f"uses shard {folder.name} again", flush=True)
