"""What could not be read: listed line by line, counted by reason, limited in its share."""

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from fewstep.errors import UserError
from fewstep.layout import LOGS
from fewstep.sources.sample import Unreadable

NAME = "quarantine.jsonl"
SHOWN = 3


class Quarantine:
    """The list `quarantine.jsonl` while it grows; memory holds the counts and the first few."""

    def __init__(self, path: Path) -> None:
        self.reasons: Counter[str] = Counter()
        self._first: list[Unreadable] = []
        self._path = path
        self._file = path.open("w")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, entry: Unreadable) -> None:
        """Append one line and count it."""
        self.reasons[entry.reason] += 1
        self._file.write(json.dumps(asdict(entry), sort_keys=True) + "\n")
        if len(self._first) < SHOWN:
            self._first.append(entry)

    def check(self, samples: int, max_share: float) -> None:
        """Raises UserError when more than `max_share` of all `samples` are here.

        The list is then copied to logs/, since the artifact it was meant for is not kept.
        """
        count = self.reasons.total()
        if count <= max_share * samples:
            return
        LOGS.mkdir(parents=True, exist_ok=True)
        self._file.flush()
        shutil.copyfile(self._path, LOGS / NAME)
        first = "\n".join(f"  {entry}" for entry in self._first)
        raise UserError(
            f"{count} of {samples} samples cannot be read, the first of them:\n{first}\n"
            f"All are listed in {LOGS / NAME}; mend or remove them, or raise "
            f"data.filters.max_quarantined_share = {max_share}"
        )
