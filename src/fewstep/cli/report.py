"""fewstep report: rewrite reports/index.html from the existing artifacts and metrics."""

import argparse


def options(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(chosen: argparse.Namespace) -> None:
    """Run the stage's script, which is the only code that makes the page."""
    import runpy

    runpy.run_path("stages/report.py", run_name="__main__")
