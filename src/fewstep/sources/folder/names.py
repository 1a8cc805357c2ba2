"""Classifies the files of a folder by their names alone: image, caption file, or neither."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".apng", ".webp")
"""Suffixes of the images that are read, in upper or lower case."""
CAPTIONS = (".txt", ".caption")
"""Suffixes of caption files, in upper or lower case; the first is preferred."""
NOT_DECODED = (
    ".avif", ".avifs", ".heic", ".heif", ".hif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".jxl", ".jp2",
    ".j2k", ".svg", ".svgz", ".ico", ".icns", ".psd", ".psb", ".xcf", ".tga", ".dds", ".exr", ".hdr", ".ppm",
    ".pgm", ".pbm", ".pnm", ".pcx", ".qoi", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf",
    ".jpx", ".rw2", ".raw", ".srw", ".pef",
)  # fmt: skip
"""Suffixes of images in formats that are not read."""


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return name.lower().endswith(SUFFIXES)


def is_caption(name: str) -> bool:
    """Whether a file of this name may be an image's caption."""
    return name.lower().endswith(CAPTIONS)


def is_not_decoded(name: str) -> bool:
    """Whether a file of this name is an image of a format that is not read."""
    return Path(name).suffix.lower() in NOT_DECODED


def reason_to_skip(path: Path) -> str:
    """Why a file that is neither an image to read nor a caption is skipped; one of a few fixed phrases."""
    if is_not_decoded(path.name):
        return f"format not decoded ({path.suffix.lower()})"
    return "broken link" if path.is_symlink() and not path.exists() else "not an image"


class Captions:
    """Which caption file belongs to which image, among the names of one folder.

    `a.jpg` has `a.txt`, `a.caption`, `a.jpg.txt` or `a.jpg.caption`; the first of them that exists is used.
    Where none exists, a name that differs in case (or in Unicode composition) is accepted, unless it belongs
    to another image by its exact name, or could belong to several.

    Memory: some 200 bytes per caption file of the folder.
    """

    def __init__(self, images: Sequence[str], texts: Sequence[str]) -> None:
        self._texts = frozenset(texts)
        self._claimed = {text for image in images for text in candidates(image) if text in self._texts}
        self._alike: defaultdict[str, list[str]] = defaultdict(list)
        for text in sorted(self._texts - self._claimed):
            self._alike[folded(text)].append(text)
        self._stems: defaultdict[str, set[str]] = defaultdict(set)
        for image in images if self._alike else ():
            self._stems[folded(stem(image))].add(stem(image))
        self._used: set[str] = set()

    def of(self, image: str) -> str | None:
        """The caption file of `image`, None where it has none; remembers that it is used."""
        texts = [text for text in candidates(image) if text in self._texts] or self._similar(image)
        self._used.update(texts[:1])
        self._claimed.update(texts)
        return texts[0] if texts else None

    def left(self) -> list[tuple[str, str]]:
        """The caption files that no call of `of` returned, sorted, each with the reason."""
        reasons = ("caption without an image", "further caption file of an image")
        return [(text, reasons[text in self._claimed]) for text in sorted(self._texts - self._used)]

    def _similar(self, image: str) -> list[str]:
        """Names that differ from the candidates in case only; those with the exact stem are preferred."""
        if not self._alike:
            return []
        similar = [text for name in candidates(image) for text in self._alike.get(folded(name), ())]
        exact = [text for text in similar if stem(text) in (stem(image), image)]
        return exact or (similar if len(self._stems[folded(stem(image))]) == 1 else [])


def candidates(image: str) -> list[str]:
    """The exact names under which a caption of `image` is looked for, in order."""
    return [f"{base}{suffix}" for base in (stem(image), image) for suffix in CAPTIONS]


def stem(name: str) -> str:
    """`name` without its last suffix."""
    return name.rpartition(".")[0]


def folded(name: str) -> str:
    """A key that is equal for names that a case-insensitive file system takes for the same."""
    return unicodedata.normalize("NFC", name).casefold()
