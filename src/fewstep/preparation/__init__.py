"""Turns a source's entries into checked, split, sharded images, in one pass; nothing is dropped silently."""
