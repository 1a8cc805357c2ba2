"""Lists the entries of a source that became no samples, counts them by reason and limits their share."""

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from fewstep.core.errors import UserError
from fewstep.core.paths import LOGS
from fewstep.sources.sample import Skipped, Unreadable

QUARANTINE, SKIPPED = "quarantine.jsonl", "skipped.jsonl"
SHOWN = 3


class Listing:
    """Entries as JSON lines in a file; memory holds their count by reason and the first few."""

    def __init__(self, path: Path) -> None:
        self.reasons: Counter[str] = Counter()
        self.first: list[Unreadable | Skipped] = []
        self.path = path
        self._file = path.open("w")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, entry: Unreadable | Skipped) -> None:
        """Append one line and count it."""
        self.reasons[entry.reason] += 1
        self._file.write(json.dumps(asdict(entry), sort_keys=True) + "\n")
        if len(self.first) < SHOWN:
            self.first.append(entry)


def check(quarantine: Listing, samples: int, max_share: float) -> None:
    """Raises UserError when more than `max_share` of all `samples` are in `quarantine`, which must be closed.

    The list is then copied to logs/, since the artifact it was meant for is not kept.
    """
    count = quarantine.reasons.total()
    if count <= max_share * samples:
        return
    LOGS.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(quarantine.path, LOGS / QUARANTINE)
    first = "\n".join(f"  {entry}" for entry in quarantine.first)
    raise UserError(
        f"{count} of {samples} samples cannot be read, the first of them:\n{first}\n"
        f"All are listed in {LOGS / QUARANTINE}; repair or remove them, or raise "
        f"data.filters.max_quarantined_share = {max_share}"
    )
