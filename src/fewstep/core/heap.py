"""Memory that the C library keeps after it was freed."""

import ctypes


def give_back() -> None:
    """Return freed memory to the operating system; nothing happens where the C library is not glibc.

    glibc keeps freed blocks of up to 32 MB for later ones. Weights that are rounded one after the other leave
    such blocks between them: 1.5 GB for Stable Diffusion XL.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
