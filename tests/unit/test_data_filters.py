"""Filters and the split: small truths about small functions."""

import pytest

from fewstep.config.data import FilterConfig
from fewstep.preparation.filters import Duplicates, aesthetic_fault, caption_fault, size_fault
from fewstep.preparation.split import digest_of, split_of


@pytest.mark.parametrize(
    ("length", "fault"),
    [(0, "caption too short"), (2, "caption too short"), (3, None), (5, None), (6, "caption too long")],
)
def test_caption_length_is_a_closed_range(length: int, fault: str | None) -> None:
    assert caption_fault("x" * length, FilterConfig(caption_length=(3, 5))) == fault


def test_aesthetic_score() -> None:
    strict = FilterConfig(min_aesthetic=5)
    lenient = FilterConfig(min_aesthetic=5, allow_missing_aesthetic=True)
    assert aesthetic_fault(4.9, strict) == aesthetic_fault(4.9, lenient) == "low aesthetic score"
    assert aesthetic_fault(5.0, strict) is None
    assert (aesthetic_fault(None, strict), aesthetic_fault(None, lenient)) == ("no aesthetic score", None)
    assert aesthetic_fault(None, FilterConfig()) is None


def test_the_shorter_side_counts() -> None:
    assert size_fault((100, 63), FilterConfig(min_side=64)) == "too small"
    assert size_fault((64, 100), FilterConfig(min_side=64)) is None


def test_captions_of_one_image_are_numbered_and_equal_pairs_are_not() -> None:
    pairs = [("a", "1"), ("b", "1"), ("a", "2"), ("a", "1"), ("a", "3"), ("b", "1"), ("a", "2"), ("b", "3")]
    duplicates = Duplicates()
    ordinals = [duplicates.ordinal(digest_of(image.encode()), caption) for image, caption in pairs]
    assert ordinals == [0, 0, 1, None, 2, None, None, 1]


def test_split_takes_its_share_and_grows_monotonically() -> None:
    digests = [digest_of(str(i).encode()) for i in range(4000)]
    some = {d for d in digests if split_of(d, 0.1) == "heldout"}
    more = {d for d in digests if split_of(d, 0.2) == "heldout"}
    assert some < more
    assert len(some) / len(digests) == pytest.approx(0.1, abs=0.02)
    assert len(more) / len(digests) == pytest.approx(0.2, abs=0.02)
