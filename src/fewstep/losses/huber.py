"""Pseudo-Huber loss: quadratic near 0, linear far from it."""

from torch import Tensor


def pseudo_huber(error: Tensor, c: float) -> Tensor:
    """`sqrt(d^2 + c^2) - c`, mean over all elements (Song & Dhariwal 2023, section 3.3, per element).

    error: d, of any shape. c: > 0, in the units of the error.
    """
    return ((error.square() + c**2).sqrt() - c).mean()
