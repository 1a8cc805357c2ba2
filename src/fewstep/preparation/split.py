"""Assigns each sample to the training split or to the held-out split."""

import hashlib


def digest_of(content: bytes) -> bytes:
    """The first 16 bytes of the SHA-256, by which contents are identified."""
    return hashlib.sha256(content).digest()[:16]


def split_of(digest: bytes, heldout: float) -> str:
    """ "heldout" for a share `heldout` of all digests, else "train".

    A function of the content alone: a sample stays in its split when others are added or removed.
    """
    return "heldout" if int.from_bytes(digest[:8], "big") < heldout * 2**64 else "train"
