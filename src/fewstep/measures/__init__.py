"""What is measured of images; the names alone here, because a report needs no more and no torch."""

TONES = ("brightness", "saturation", "contrast", "detail")
"""Of an image; see `measures.tone.tones`."""
