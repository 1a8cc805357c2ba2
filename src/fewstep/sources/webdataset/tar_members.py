"""Reads the members of a tar once, from front to back; a damaged member does not affect the others.

Python's tarfile takes a damaged header for the end of the archive and trusts every size. Here reading goes on
at the next valid header, even if that lies where a member's content should be.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from tarfile import (
    BLKTYPE,
    CHRTYPE,
    DIRTYPE,
    FIFOTYPE,
    GNUTYPE_LONGLINK,
    GNUTYPE_LONGNAME,
    GNUTYPE_SPARSE,
    LNKTYPE,
    SOLARIS_XHDTYPE,
    SYMTYPE,
    XGLTYPE,
    XHDTYPE,
    HeaderError,
    TarInfo,
)

from fewstep.sources.webdataset.byte_stream import CHUNK, ByteStream

BLOCK = 512
ZEROS = bytes(BLOCK)
CHECKSUM = slice(148, 156)
MARK, MARK_OFFSET = b"ustar", 257
LARGEST = 1 << 28
"""Bytes of the largest member that is read into memory."""
LARGEST_EXTENSION = 1 << 20
"""Bytes of the longest name or PAX header."""
WITHOUT_CONTENT = {
    LNKTYPE: "is a hard link",
    SYMTYPE: "is a symbolic link",
    CHRTYPE: "is a device",
    BLKTYPE: "is a device",
    FIFOTYPE: "is a FIFO",
}
EXTENSIONS = (XHDTYPE, SOLARIS_XHDTYPE, XGLTYPE, GNUTYPE_LONGNAME, GNUTYPE_LONGLINK)


@dataclass(frozen=True)
class Member:
    """One member that is not a folder.

    name: as in the tar. content: b"" where it was not wanted or has a fault.
    fault: what is wrong with it, as a verb phrase ("is a hard link"), or "".
    """

    name: str
    content: bytes = b""
    fault: str = ""


class TarReader:
    """Reads the members of one tar. `problem` is the first damage to the archive as such, or ""."""

    def __init__(self, stream: ByteStream, wanted: Callable[[str], bool]) -> None:
        self.problem = ""
        self._stream = stream
        self._wanted = wanted
        self._headers = 0
        self._skipped = False

    def members(self) -> Iterator[Member]:
        """Every member in its order; it has content if its name is `wanted`.

        Concatenated archives are read as one.
        """
        extension: dict[str, str] = {}
        while (info := self._next_header()) is not None:
            if self._skipped:
                extension = {}
            if info.type in EXTENSIONS:
                extension |= self._extension(info)
                continue
            yield from self._member(info, extension)
            extension = {}
        self._check_end()

    def _member(self, info: TarInfo, extension: Mapping[str, str]) -> Iterator[Member]:
        name, link = extension.get("path", info.name), extension.get("linkpath", info.linkname)
        if info.type in WITHOUT_CONTENT:
            # GNU tar stores a file that it was handed twice as a hard link to itself.
            if not (info.type == LNKTYPE and link == name):
                yield Member(name, fault=WITHOUT_CONTENT[info.type])
        elif info.type != DIRTYPE:
            size = extension.get("size", "")
            content, fault = self._content(int(size) if size.isdecimal() else info.size, self._wanted(name))
            if info.type == GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in extension):
                fault = "is a sparse file"
            yield Member(name, b"" if fault else content, fault)

    def _next_header(self) -> TarInfo | None:
        """The next valid header, or None at the end. Data before it other than zeros is noted as damage."""
        self._skipped = self._after_zeros = False
        while len(block := self._stream.read(BLOCK)) == BLOCK:
            if info := header(block):
                self._headers += 1
                return info
            self._after_zeros = block == ZEROS
            if not self._after_zeros:
                self._skipped = True
                self._note("it holds a damaged header")
        self._after_zeros = self._after_zeros and not block.strip(b"\0")
        return None

    def _check_end(self) -> None:
        """Note a problem unless the stream ends with zeros, as a complete tar does."""
        failure = self._stream.failure
        if failure is not None:
            # Damage noted before may be a consequence of it.
            self.problem = "reading it failed" if isinstance(failure, OSError) else str(failure)
        elif not self._after_zeros:
            self._note("it ends early")
        if self.problem and not self._headers and failure is None:
            self.problem = "it is no tar" if self._stream.started else "it is empty"

    def _note(self, problem: str) -> None:
        self.problem = self.problem or problem

    def _extension(self, info: TarInfo) -> dict[str, str]:
        """Metadata that an extension header (PAX or GNU) holds for the member after it."""
        data, fault = self._content(info.size, keep=info.size <= LARGEST_EXTENSION)
        try:
            if fault or info.size > LARGEST_EXTENSION:
                raise ValueError(fault)
            if info.type in (GNUTYPE_LONGNAME, GNUTYPE_LONGLINK):
                key = "path" if info.type == GNUTYPE_LONGNAME else "linkpath"
                return {key: text(data.partition(b"\0")[0])}
            return {} if info.type == XGLTYPE else pax_records(data)
        except ValueError:
            self._note("it holds a damaged header")
            return {}

    def _content(self, size: int, keep: bool) -> tuple[bytes, str]:
        """A member's content, b"" unless `keep`, and its fault. Reading ends where the next header starts."""
        pieces: list[bytes] = []
        too_large = keep and size > LARGEST
        left, padded = size, -(-size // BLOCK) * BLOCK
        in_a_tar = False
        while padded:
            piece = self._stream.read(min(CHUNK, padded))
            start = None if in_a_tar else first_header(piece)
            if start == 0 and padded == -(-size // BLOCK) * BLOCK and not keep:
                in_a_tar = True  # a tar as a member of a tar
            elif start is not None:
                self._stream.put_back(piece[start:])
                return b"", "has a wrong size in the tar"
            if keep and not too_large:
                pieces.append(piece[:left])
            left, padded = left - min(left, len(piece)), padded - len(piece)
            if len(piece) % BLOCK or not piece:
                break
        if left:
            return b"", "is cut off"
        return b"".join(pieces), f"is larger than {LARGEST >> 20} MiB" if too_large else ""


def header(block: bytes) -> TarInfo | None:
    """The header in `block`, or None where it is not a valid one."""
    if not block[CHECKSUM].strip(b" \0").isdigit():
        return None
    try:
        info = TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (HeaderError, ValueError):
        return None
    return info if info.size >= 0 else None


def first_header(piece: bytes) -> int | None:
    """Offset in `piece`, a multiple of BLOCK, of its first POSIX or GNU header."""
    position = piece.find(MARK, MARK_OFFSET)
    while position >= 0:
        start = position - MARK_OFFSET
        if start % BLOCK == 0 and header(piece[start : start + BLOCK]):
            return start
        position = piece.find(MARK, position + 1)
    return None


def pax_records(data: bytes) -> dict[str, str]:
    """The records of a PAX header, lines `length key=value`. Raises ValueError when it is damaged."""
    records = {}
    while data:
        digits, _, _ = data.partition(b" ")
        length = int(digits)
        key, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or length > len(data):
            raise ValueError("no PAX record")
        records[text(key)] = text(value)
        data = data[length:]
    return records


def text(encoded: bytes) -> str:
    """A name; bytes that are not UTF-8 become lone surrogates, as in Python's file names."""
    return encoded.decode("utf-8", "surrogateescape")
