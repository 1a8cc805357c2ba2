"""The bytes of a file, URL or pipe, read once from front to back, decompressed where they are compressed."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from webdataset.gopen import Pipe, gopen

CHUNK = 1 << 16
PIECE = 1 << 10  # bytes of compressed data per read; so many are lost before damaged data
GZIP = 31  # zlib's window bits for a gzip header
DECOMPRESSORS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(GZIP),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
}
OTHER_FORMATS = {b"\x28\xb5\x2f\xfd": "zstandard", b"PK\x03\x04": "zip", b"Rar!": "rar", b"7z\xbc\xaf": "7z"}


class ByteStream:
    """Reads `chunks` in any amounts. An error while reading them ends the stream and is kept in `failure`.

    So everything before damaged data can still be read. `started`: whether there was any data.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.failure: Exception | None = None
        self.started = False
        self._chunks = chunks
        self._buffer = b""
        self._position = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        pieces = []
        while size:
            if self._position == len(self._buffer) and not self._fill():
                break
            piece = self._buffer[self._position : self._position + size]
            self._position += len(piece)
            size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def put_back(self, content: bytes) -> None:
        """Push `content` back, to be read next."""
        self._buffer = content + self._buffer[self._position :]
        self._position = 0

    def _fill(self) -> bool:
        try:
            self._buffer, self._position = next(self._chunks, b""), 0
        except (OSError, EOFError, ValueError) as error:
            self._buffer, self._position, self.failure = b"", 0, error
        self.started = self.started or bool(self._buffer)
        return bool(self._buffer)


@contextmanager
def open_stream(url: str) -> Iterator[ByteStream]:
    """A file, URL or `pipe:` command. Raises OSError when it cannot be opened, or its command failed."""
    source = gopen(url)
    # Pipe.read drops what it has just read when the command has failed meanwhile; close reports that too.
    raw = source.stream if isinstance(source, Pipe) else source
    read_to_the_end = False
    try:
        yield ByteStream(decompressed(raw))
        read_to_the_end = True
    finally:
        # If reading stops early, the command fails because its pipe is closed, which is no error.
        with suppress(*(() if read_to_the_end else (OSError,))):
            source.close()


def decompressed(raw: IO[bytes]) -> Iterator[bytes]:
    """`raw` in pieces, none of them empty, decompressed if it starts as gzip, bzip2 or xz do.

    Raises EOFError when compressed data ends early, ValueError when it is damaged or of a format not read.
    """
    piece = raw.read(PIECE)
    for start, name in OTHER_FORMATS.items():
        if piece.startswith(start):
            raise ValueError(f"{name} is not read; make it a tar, plain or gzip")
    make = next((make for start, make in DECOMPRESSORS.items() if piece.startswith(start)), None)
    if make is None:
        while piece:
            yield piece
            piece = raw.read(CHUNK)
        return
    decompressor = make()
    while piece:
        try:
            content = decompressor.decompress(piece)
        except (OSError, zlib.error, lzma.LZMAError):
            raise ValueError("its compressed data is damaged") from None
        if content:
            yield content
        if decompressor.eof:
            # Another compressed part may follow, and zeros may pad the end.
            piece = decompressor.unused_data
            while not (piece := piece.lstrip(b"\0")) and (more := raw.read(PIECE)):
                piece = more
            if not piece:
                return
            decompressor = make()
        else:
            piece = raw.read(PIECE)
    raise EOFError("its compressed data ends early")
