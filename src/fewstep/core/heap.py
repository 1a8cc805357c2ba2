"""Memory of the C library: how it is laid out, and what it keeps after it was freed."""

import ctypes
import os


def use_huge_pages() -> None:
    """Have torch ask for huge pages, unless the user has chosen; torch reads this at its first allocation.

    An autoencoder's activations take a sixth less time on CPUs with them.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def give_back() -> None:
    """Return freed memory to the operating system; nothing happens where the C library is not glibc.

    glibc keeps freed blocks of up to 32 MB for later ones. Weights that are rounded one after the other leave
    such blocks between them: 1.5 GB for Stable Diffusion XL.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
