"""Python's garbage collection, set for programs that import libraries of a million objects."""

import gc

THRESHOLD = 20_000
"""New objects after which Python looks for garbage; its default is 700."""


def collect_rarely() -> None:
    """Call it once, at the start: a training stage then starts a second sooner, of six and a half.

    Imports make objects that stay, and each collection looks at those of all imports before. Training steps
    make few objects that refer to each other, and tensors are released without a collection.
    """
    gc.set_threshold(THRESHOLD)
