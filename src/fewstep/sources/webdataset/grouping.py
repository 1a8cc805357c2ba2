"""Groups a tar's members into samples: adjacent members whose names differ only in the suffix.

The suffix is the longest of `data.keys` that the name ends with, in upper or lower case: `cam1.shot7.jpg`
and `cam1.shot7.json` are the sample `cam1.shot7`. A member with another suffix, or an incomplete sample whose
name extends that of an adjacent sample (`0001.seg.png` beside `0001.jpg` and `0001.json`), is Skipped.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fewstep.config.data import KeysConfig
from fewstep.sources.sample import NO_CAPTION, NOT_ADJACENT, Skipped, Unreadable
from fewstep.sources.webdataset.tar_members import Member

OTHER = "other member"
HIDDEN = "hidden file"


@dataclass
class Group:
    """The members of one sample.

    key: its name within the archive. parts: suffix in lower case -> content. fault: reason and detail of what
    is wrong with one of them.
    """

    key: str
    parts: dict[str, bytes] = field(default_factory=dict)
    fault: tuple[str, str] | None = None

    def add(self, suffix: str, member: Member) -> None:
        """Add a member; an identical copy of one changes nothing."""
        if member.fault:
            self.fault = self.fault or ("member not readable", f"its .{suffix} {member.fault}")
        elif self.parts.setdefault(suffix, member.content) != member.content:
            self.fault = self.fault or (
                "repeated member",
                f"its .{suffix} comes twice, with different content",
            )


class Names:
    """Splits members' names into key and suffix by the suffixes that `data.keys` names."""

    def __init__(self, keys: KeysConfig) -> None:
        self.images = tuple(suffix.lower().lstrip(".") for suffix in keys.image)
        self.metadata = keys.metadata.lower().lstrip(".")
        self._longest_first = sorted({*self.images, self.metadata}, key=len, reverse=True)

    def split(self, name: str) -> tuple[str, str]:
        """Key and suffix; the suffix is "" for a member that is neither an image nor metadata."""
        path = "/".join(part for part in name.split("/") if part not in ("", "."))
        for suffix in self._longest_first:
            if path.lower().endswith("." + suffix):
                return path[: -len(suffix) - 1], suffix
        return path, ""

    def wanted(self, name: str) -> bool:
        """Whether a member's content is needed."""
        return bool(self.split(name)[1]) and not is_hidden(name)


class Grouping:
    """Groups the members of one archive.

    Memory holds

    - the contents of the sample that is being read, or of several if one's name extends another's;
    - the names of the archive's incomplete samples, so that an image and metadata that are not adjacent are
      reported as such;
    - the names of the last samples that have the same name up to its first dot.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._open: list[Group] = []  # each key extends the key before it
        self._halves: dict[str, str] = {}  # key -> suffix of its only part
        self._base = ""  # common start of the last keys, up to the first dot
        self._whole: set[str] = set()  # keys of that base that were complete samples
        self._nearby: list[str] = []  # keys of that base with only an image or only metadata
        self._apart: set[str] = set()  # keys whose image and metadata are not adjacent

    def groups(self, members: Iterable[Member]) -> Iterator[Group | Unreadable | Skipped]:
        """Yield samples as soon as they are complete, and incomplete ones at the end."""
        for member in members:
            key, suffix = self._names.split(member.name)
            if not suffix or is_hidden(member.name):
                yield Skipped(member.name, HIDDEN if is_hidden(member.name) else OTHER)
                continue
            while self._open and key != self._open[-1].key and not extends(key, self._open[-1].key):
                yield from self._close(self._open.pop())
            if not self._open or key != self._open[-1].key:
                if base(key) != self._base:
                    yield from self._extras()
                    self._base = base(key)
                self._open.append(Group(key))
            self._open[-1].add(suffix, member)
        while self._open:
            yield from self._close(self._open.pop())
        yield from self._extras()
        yield from self._incomplete()

    def _close(self, group: Group) -> Iterator[Group | Unreadable | Skipped]:
        has_image, has_metadata = self._has(group.parts)
        if not group.fault and not (has_image and has_metadata):
            yield from self._half(group.key, *group.parts)
            return
        self._whole.add(group.key)
        yield Unreadable(group.key, *group.fault) if group.fault else group

    def _extras(self) -> Iterator[Skipped]:
        """Skip incomplete samples whose name extends that of a complete one nearby; forget those names."""
        for key in self._nearby:
            if key in self._halves and not self._whole.isdisjoint(parents(key)):
                yield Skipped(f"{key}.{self._halves.pop(key)}", OTHER)
        self._whole.clear()
        self._nearby.clear()

    def _half(self, key: str, suffix: str, *more: str) -> Iterator[Unreadable]:
        """Keep the name of an incomplete sample, or report it if its other half was read before."""
        before = self._halves.get(key)
        if before is None or (before == self._names.metadata) == (suffix == self._names.metadata):
            self._halves[key] = suffix
            self._nearby.append(key)
            return
        del self._halves[key]
        self._apart.add(key)
        image, metadata = (before, suffix) if suffix == self._names.metadata else (suffix, before)
        yield Unreadable(
            key,
            NOT_ADJACENT,
            f"its .{image} and .{metadata} are not beside each other in the tar; write them so, "
            "e.g. `tar --sort=name`",
        )

    def _incomplete(self) -> Iterator[Unreadable | Skipped]:
        """Incomplete samples that are left at the end of the archive."""
        for key, suffix in self._halves.items():
            if any(parent in self._halves or parent in self._apart for parent in parents(key)):
                yield Skipped(f"{key}.{suffix}", OTHER)
            elif suffix == self._names.metadata:
                yield Unreadable(key, "no image", f"none of {', '.join(self._names.images)}")
            else:
                yield Unreadable(key, NO_CAPTION, f"no .{self._names.metadata} beside its .{suffix}")

    def _has(self, suffixes: Iterable[str]) -> tuple[bool, bool]:
        """Whether there is an image, and whether there is metadata."""
        present = set(suffixes)
        return not present.isdisjoint(self._names.images), self._names.metadata in present


def extends(key: str, parent: str) -> bool:
    """Whether `key` is `parent.something` in the same folder."""
    return key.startswith(parent + ".") and "/" not in key[len(parent) :]


def base(key: str) -> str:
    """A key up to the first dot of its file name."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def parents(key: str) -> Iterator[str]:
    """The keys that `key` extends, the longest first."""
    while "." in key.rpartition("/")[2]:
        key = key.rpartition(".")[0]
        yield key


def is_hidden(name: str) -> bool:
    """Whether a member is a file that an operating system adds: `._0001.jpg`, `__MACOSX/`, `.DS_Store`."""
    *folders, last = name.split("/")
    return last.startswith(".") or "__MACOSX" in folders
