"""The files of a sample, and how they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fewstep.sources.folder.names import CAPTIONS
from fewstep.sources.folder.tables import NOT_UTF8
from fewstep.sources.sample import Sample, Unreadable


@dataclass(frozen=True)
class ImageFile:
    """A sample that is not read yet.

    name: of the image, relative to the folder. caption_file: name of a file beside it; None where the caption
    is that of a table, or where there is none. The others: as in Sample.
    """

    name: str
    caption_file: str | None = None
    caption: str | None = None
    aesthetic_score: float | None = None
    labels: Mapping[str, str] | None = None
    hidden: Mapping[str, str] | None = None

    def paths(self, root: Path) -> list[str]:
        """The files that `read` reads."""
        image = root / self.name
        return [str(image), *([str(image.with_name(self.caption_file))] if self.caption_file else [])]

    def read(self, root: Path) -> Sample | Unreadable:
        """The sample, with its image and caption."""
        caption = self.caption
        if self.caption_file is not None:
            kind = kind_of(self.caption_file)
            try:
                caption = (root / self.name).with_name(self.caption_file).read_bytes().decode("utf-8-sig")
            except UnicodeDecodeError:
                return Unreadable(self.name, "broken metadata", f"its {kind}: {NOT_UTF8}")
            except OSError as error:
                return Unreadable(self.name, "broken metadata", f"its {kind}: {error.strerror}")
        path = root / self.name
        try:
            if not path.is_file() and path.exists():
                return Unreadable(self.name, "image not readable", "no regular file")
            image = path.read_bytes()
        except OSError as error:
            detail = "broken link" if path.is_symlink() and not path.exists() else str(error.strerror)
            return Unreadable(self.name, "image not readable", detail)
        return Sample(self.name, image, caption, self.aesthetic_score, self.labels, self.hidden)


def kind_of(caption: str) -> str:
    """The suffix of a caption file's name."""
    return next(caption[-len(suffix) :] for suffix in CAPTIONS if caption.lower().endswith(suffix))
