"""Artifact folders: written atomically, verified when they are read."""
