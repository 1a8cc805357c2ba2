"""Text that a user supplies: read and normalised in one place, wherever it comes from."""

import unicodedata
from pathlib import Path

BYTE_ORDER_MARK = "\ufeff"


def normalised(text: str) -> str:
    """`text` as it is stored and encoded: no byte-order mark, `\\n` line ends, Unicode form NFC, stripped.

    Captions, prompts of a file or of the command line, and negative prompts all pass through here, so that
    equivalent encodings of a text are the same prompt.
    """
    lines = text.replace(BYTE_ORDER_MARK, "").replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", lines).strip()


def read_text(path: Path) -> str:
    """A UTF-8 file's text, normalised. Raises OSError or UnicodeDecodeError as `Path.read_text` does."""
    return normalised(path.read_bytes().decode("utf-8-sig"))
