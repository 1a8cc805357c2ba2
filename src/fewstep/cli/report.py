"""fewstep report: write reports/index.html anew from what is there."""

import argparse


def options(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(chosen: argparse.Namespace) -> None:
    """By the stage's own script, so that there is one way to make the page."""
    import runpy

    runpy.run_path("stages/report.py", run_name="__main__")
