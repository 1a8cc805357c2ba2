"""Measures of images. This file holds their names only, so that the report can import them without torch."""

TONES = ("brightness", "saturation", "contrast", "detail")
"""Tones of an image; see `measures.tone.tones`."""
