"""Pseudo-Huber loss: quadratic near 0, linear far from it."""

from torch import Tensor


def pseudo_huber(error: Tensor, c: float, scale: Tensor | float = 1.0) -> Tensor:
    """Mean over elements of `(sqrt(d^2 + c^2) - c) / scale` (Song & Dhariwal 2023, section 3.3).

    error: d, of any shape. c: > 0, in the units of the error. scale: a divisor that broadcasts to d.
    """
    return (((error.square() + c**2).sqrt() - c) / scale).mean()
