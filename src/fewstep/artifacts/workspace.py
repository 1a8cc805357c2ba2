"""Where a stage keeps unfinished work, and when that work may be resumed.

Work is kept in `.checkpoints/<stage>/<fingerprint>`. The fingerprint covers the params, the inputs and the
source of every loaded module of this project. A stage therefore only resumes work that was started with the
same params, inputs and code. Other work of the stage is reported and kept. FEWSTEP_RESUME=<fingerprint>
resumes it despite the differences, which the artifact's manifest then records; `fewstep clean` deletes it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from fewstep.artifacts.manifest import identity, sha256
from fewstep.core.errors import UserError
from fewstep.core.files import read_json, write_json
from fewstep.core.paths import CHECKPOINTS
from fewstep.core.processes import any_rank, barrier, from_main, is_main_process
from fewstep.core.switches import is_on, switch

ORIGIN = "origin.json"
"""File in a folder of work: the `Origin` that it was started with."""
LOCK = "lock"
"""File that the stage using the folder holds locked."""
LATE = "imported after the fingerprint was taken"
"""Warning of code that may change the result although the fingerprint does not cover it."""
PARTS = (".safetensors", ".zip")
"""Suffixes of finished parts."""
SHARDS = "shards"
"""Folder of finished shards of triplets, which are kept for other groupings."""
UNKNOWN = "made by an earlier version of fewstep"


@dataclass(frozen=True)
class Origin:
    """What work depends on. params: as plain JSON. inputs: name -> identity. source: module -> SHA-256.

    resumed: differences despite which the work was resumed, in order.
    """

    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    source: Mapping[str, str]
    resumed: tuple[str, ...] = ()

    @classmethod
    def of(cls, params: Mapping[str, Any], inputs: Mapping[str, Path]) -> Self:
        """The origin with the modules that are loaded now."""
        plain = json.loads(json.dumps(params))
        return cls(plain, {name: identity(path) for name, path in inputs.items()}, loaded_source())

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The origin of the work in a folder; None where an earlier version of fewstep made it."""
        if not (folder / ORIGIN).exists():
            return None
        record = read_json(folder / ORIGIN)
        return cls(record["params"], record["inputs"], record["source"], tuple(record["resumed"]))

    def write(self, folder: Path) -> None:
        """Write the file that `read` reads."""
        write_json(folder / ORIGIN, vars(self))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; `resumed` is not part of it."""
        content = {"params": self.params, "inputs": self.inputs, "source": self.source}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, then: Self | None) -> list[str]:
        """The differences from another origin, one line each."""
        if then is None:
            return [UNKNOWN]
        params, before = flat(self.params), flat(then.params)
        names = [name for name in sorted(params | before) if params.get(name) != before.get(name)]
        lines = [f"{name} = {params.get(name)!r}, then {before.get(name)!r}" for name in names]
        for what, now, old in (("input", self.inputs, then.inputs), ("code", self.source, then.source)):
            changed = [name for name in sorted({*now, *old}) if now.get(name) != old.get(name)]
            lines += [f"{what} {name}" for name in changed]
        return lines


class Workspace:
    """The folder of a stage's unfinished work.

    folder: its path. origin: what the work depends on.
    """

    def __init__(self, stage: str, params: Mapping[str, Any], inputs: Mapping[str, Path]) -> None:
        """Find or make the folder. Every process of the stage calls this after it has opened all its inputs.

        Modules imported later are not part of the fingerprint. Raises UserError where another process uses
        the work that FEWSTEP_RESUME names, and in every process where the stage's processes differ.
        """
        self.origin = Origin.of(params, inputs)
        differences = self.origin.differences(from_main(self.origin))
        if any(any_rank(bool(differences))):
            raise UserError(
                f"{stage}: its processes read different files, because one was edited while they started"
                f"{''.join(f' ({line})' for line in differences[:1])}: run it again"
            )
        self.folder = CHECKPOINTS / stage / self.origin.fingerprint
        if is_main_process():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            claim = locked(self.folder.parent, fcntl.LOCK_EX)  # groups of shards share the folder
            try:
                self._claim(stage)
            finally:
                os.close(claim)
        barrier()
        self.origin = Origin.read(self.folder) or self.origin
        self._lock = locked(self.folder / LOCK, fcntl.LOCK_SH)

    def _claim(self, stage: str) -> None:
        """Make the folder, or take over the work that FEWSTEP_RESUME names; report other work."""
        others = [other for other in unfinished(stage) if other.folder != self.folder]
        named = [other for other in others if other.folder.name == switch("RESUME", "")]
        if named:
            self._take_over(stage, named[0])
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / ORIGIN).exists():
            self.origin.write(self.folder)
        for other in others:
            why = "; ".join(self.origin.differences(Origin.read(other.folder))) or "work that replaced it"
            print(
                f"{stage}: does not resume {other}, because of {why}. To resume it all the same, set "
                f"FEWSTEP_RESUME={other.folder.name}; to delete it, `fewstep clean {stage}`",
                flush=True,
            )

    def _take_over(self, stage: str, other: "Unfinished") -> None:
        """Move other work to this stage's folder. Work that is already there is renamed and kept."""
        other.refuse_if_used()
        before = Origin.read(other.folder)
        differences = self.origin.differences(before)
        resumed = (*(before.resumed if before else ()), *differences)
        message = f"{stage}: resumes {other}, despite {'; '.join(differences) or 'other work in its place'}"
        if self.folder.exists():
            aside = self.folder.with_name(f"{self.folder.name}-{uuid4().hex[:8]}")
            Unfinished(stage, self.folder).refuse_if_used()
            self.folder.rename(aside)
        other.folder.rename(self.folder)
        Origin(self.origin.params, self.origin.inputs, self.origin.source, resumed).write(self.folder)
        print(message, flush=True)

    @property
    def metadata(self) -> dict[str, Any]:
        """For the artifact's manifest: `resumed`, the differences despite which work was resumed, if any."""
        return {"resumed": list(self.origin.resumed)} if self.origin.resumed else {}

    def finish(self, keep: bool = False) -> None:
        """Delete the work once its artifact is written; FEWSTEP_KEEP_STATE or `keep` keeps it."""
        late = loaded_source().keys() - self.origin.source.keys()
        if late and not self.origin.resumed:
            print(f"warning: {LATE}: {', '.join(sorted(late))}")
        self.leave()
        if not keep and not is_on("KEEP_STATE"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def leave(self) -> None:
        """Release the lock; it is also released when the process ends."""
        os.close(self._lock)


@dataclass(frozen=True)
class Unfinished:
    """Work of a stage that is on disk."""

    stage: str
    folder: Path

    @property
    def size(self) -> int:
        """Size on disk, bytes."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been saved yet."""
        return all(file.name in (ORIGIN, LOCK) for file in self.folder.rglob("*") if file.is_file())

    @property
    def progress(self) -> str:
        """Progress in words: the step of the newest state, or the number of finished parts."""
        states = sorted((state.stat().st_mtime, state) for state in self.folder.glob("*/step-*"))
        if states:
            newest = states[-1][1]
            return f"{newest.parent.name} at step {int(newest.name.removeprefix('step-'))}"
        finished = {"shards": self._shards, "parts": self._parts}
        counts = [f"{len(files)} finished {name}" for name, files in finished.items() if files]
        return ", ".join(counts) or "0 finished parts"

    @property
    def _parts(self) -> list[Path]:
        return [file for file in self.folder.iterdir() if file.suffix in PARTS and file.name[0] != "."]

    @property
    def _shards(self) -> list[Path]:
        return [shard for shard in self.folder.glob(f"{SHARDS}/*") if shard.name[0] != "."]

    def refuse_if_used(self) -> None:
        """Raises UserError where a running stage uses it."""
        try:
            os.close(locked(self.folder / LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(f"{self.folder}: a stage is at work here; stop it first") from None

    def delete(self) -> None:
        """Delete it. Raises UserError where a running stage uses it."""
        self.refuse_if_used()
        shutil.rmtree(self.folder)

    def __str__(self) -> str:
        kept = self._shards and not self._parts
        return f"{'kept' if kept else 'unfinished'} work ({self.progress}) in {self.folder}"


def unfinished(stage: str | None = None) -> Iterator[Unfinished]:
    """Work on disk, of one stage or of all, oldest first, without folders in which nothing was saved."""
    folders = [*CHECKPOINTS.glob(f"{stage or '*'}/*")]
    for folder in sorted(folders, key=lambda each: each.stat().st_mtime):
        work = Unfinished(folder.parent.name, folder)
        if folder.is_dir() and not work.is_empty:
            yield work


def locked(place: Path, how: int) -> int:
    """A descriptor that holds the lock of a file or folder until it is closed.

    Raises BlockingIOError with LOCK_NB.
    """
    descriptor = os.open(place, os.O_RDONLY if place.is_dir() else os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def loaded_source() -> dict[str, str]:
    """SHA-256 of every loaded module of this project, including the stage's script."""
    ours = {n: m for n, m in sorted(sys.modules.items()) if n.split(".")[0] in ("fewstep", "__main__")}
    files = {name: getattr(module, "__file__", None) for name, module in ours.items()}
    return {name: sha256(Path(file)) for name, file in files.items() if file}


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested params as `section.key` -> value."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        name: value
        for key, each in values.items()
        for name, value in flat(each, f"{prefix}.{key}" if prefix else str(key)).items()
    }
