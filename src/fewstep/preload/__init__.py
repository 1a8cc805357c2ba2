"""Stages that start in a fraction of a second: the libraries are imported once per chain, not once per stage.

    python -m fewstep.preload dvc repro

This starts a server (server.py) that imports torch, diffusers and others. The command finds other programs
as `python` and `dvc` first on its PATH (client.py). They have the server run a script in a process forked
from it. Where that could differ from a usual start, the script starts as usual.
"""
