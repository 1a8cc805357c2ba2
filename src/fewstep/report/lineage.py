"""Lineage: the inputs of each artifact, down to the data, traced through the manifests by hash."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fewstep.artifacts.manifest import NAME, Manifest, identity
from fewstep.core.errors import UserError
from fewstep.core.files import read_json


@dataclass(frozen=True)
class Artifact:
    """A node of the lineage: one artifact, or the shards of one series.

    identities: SHA-256 of its manifest, or of each shard's. anchor: its HTML id.
    kind: the manifest's; None when no folder with that manifest is here.
    parents: its direct inputs. ancestors: the inputs of those, and so on, oldest first.
    """

    name: str
    identities: tuple[str, ...]
    anchor: str
    kind: str | None
    parents: tuple["Artifact", ...]
    ancestors: tuple["Artifact", ...]


def trace(folders: Iterable[Path], artifacts: Path) -> list[Artifact]:
    """The artifacts in `folders` and all their ancestors, each once and after its inputs.

    Ancestors are looked for below `artifacts`. Raises UserError naming a manifest that is missing or broken.
    """
    known = catalogue(artifacts)
    traced: dict[tuple[str, ...], Artifact] = {}

    def visit(name: str, identities: tuple[str, ...]) -> Artifact:
        if identities not in traced:
            manifests = [read_manifest(known[one]) for one in identities if one in known]
            sources = {source for manifest in manifests for source in manifest.made_from.items()}
            parents = tuple(dict.fromkeys(visit(*series) for series in gather(sources)))
            above = {a.anchor for parent in parents for a in (*parent.parents, *parent.ancestors)}
            above -= {parent.anchor for parent in parents}
            traced[identities] = Artifact(
                name=name,
                identities=identities,
                anchor=f"artifact-{len(traced)}",
                kind=manifests[0].kind if manifests else None,
                parents=parents,
                ancestors=tuple(artifact for artifact in traced.values() if artifact.anchor in above),
            )
        return traced[identities]

    for folder in folders:
        visit(folder.name, (identity(folder),))
    return list(traced.values())


def gather(sources: Iterable[tuple[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    """Pairs (name, identity), the shards of a series ("triplets 0", "triplets 1", ...) under one name."""
    series: dict[str, list[tuple[int, str]]] = {}
    for name, one in sources:
        shard = re.fullmatch(r"(.+) (\d+)", name)
        stem, number = (shard[1], int(shard[2])) if shard else (name, 0)
        series.setdefault(stem, []).append((number, one))
    return [(stem, tuple(one for _, one in sorted(shards))) for stem, shards in sorted(series.items())]


def catalogue(artifacts: Path) -> dict[str, Path]:
    """Every artifact folder one or two levels below `artifacts`, by identity."""
    manifests = [*artifacts.glob(f"*/{NAME}"), *artifacts.glob(f"*/*/{NAME}")]
    return {identity(manifest.parent): manifest.parent for manifest in manifests}


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest only: the page shows a folder's metadata and loads none of its content.

    Raises UserError when it is missing or of another version.
    """
    try:
        return Manifest(**read_json(folder / NAME))
    except TypeError:
        raise UserError(
            f"{folder / NAME}: not a manifest of this version; rebuild it with `dvc repro`"
        ) from None
