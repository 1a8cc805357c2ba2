"""`data:` where the images come from and which of them are used."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from fewstep.config.base import CREDENTIALS, Place, Section


class FilterConfig(Section):
    """Which samples are good enough."""

    min_side: int = Field(default=1, ge=1)
    """Smallest accepted shorter side of the original image, pixels."""
    min_aesthetic: float | None = None
    """Smallest accepted aesthetic score; null: no filter."""
    allow_missing_aesthetic: bool = False
    """Whether a sample without a score passes `min_aesthetic`."""
    caption_length: tuple[int, int] = (1, 1000)
    """Accepted range of the caption's length, characters after stripping."""
    max_quarantined_share: float = Field(default=0.05, ge=0, le=1)
    """Stop when more than this share of the samples is unreadable."""

    @model_validator(mode="after")
    def _range(self) -> "FilterConfig":
        low, high = self.caption_length
        if not 0 <= low <= high:
            raise ValueError("caption_length must be [low, high] with 0 <= low <= high")
        return self


class KeysConfig(Section):
    """Names under which a webdataset keeps its fields."""

    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    metadata: str = "json"
    caption: str = "caption"
    aesthetic_score: str = "aesthetic_score"
    labels: str = "labels"
    """Attribute -> value for attributes that the caption states; a classifier can be trained on them."""
    hidden: str = "hidden"
    """Attribute -> value for attributes that the caption does not state; they measure a model's diversity."""


class DataConfig(Section):
    """The `data` section."""

    source: Literal["shapes", "folder", "webdataset"]
    path: Place | None = None
    """folder: the directory. webdataset: a tar, brace pattern (`{000..009}.tar`) or URL. May be a name in
    `inputs`, a section that no stage depends on."""
    count: int | None = Field(default=None, ge=1)
    """shapes: number of images. Other sources: use only the first `count` samples; null: all."""
    resolution: int = Field(ge=8, le=4096, multiple_of=8)
    """Side of the prepared images, pixels."""
    heldout: float = Field(default=0.1, gt=0, lt=1)
    """Share of the samples that is held out from all training."""
    split_by: Literal["caption", "image"] = "image"
    """What is hashed to assign a sample to a split. With `caption`, no held-out prompt is trained on, but an
    image with several captions may be in both splits."""
    shard_size: int = Field(default=2000, ge=1)
    """Samples per shard. Training keeps two decoded shards: 6 x resolution^2 x shard_size bytes."""
    filters: FilterConfig = FilterConfig()
    keys: KeysConfig = KeysConfig()

    @field_validator("path")
    @classmethod
    def _no_secret(cls, path: str | None) -> str | None:
        if path and CREDENTIALS.search(path):
            raise ValueError(
                "credentials would stay in dvc.lock; keep them in ~/.netrc: `pipe:curl --netrc -fsL URL`"
            )
        return path

    @model_validator(mode="after")
    def _path(self) -> "DataConfig":
        if self.source == "shapes" and self.count is None:
            raise ValueError("source `shapes` needs `count`")
        if self.source != "shapes" and not self.path:
            raise ValueError(f"source `{self.source}` needs `path`")
        return self
