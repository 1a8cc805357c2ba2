"""fewstep clean: delete unfinished work in .checkpoints."""

import argparse


def options(parser: argparse.ArgumentParser) -> None:
    """Of the command."""
    parser.add_argument("stage", nargs="*", help="as DVC names it, e.g. train_teacher; default: all")


def run(chosen: argparse.Namespace) -> None:
    """Delete and say what was deleted. Raises UserError where a stage is at work."""
    from rich.filesize import decimal

    from fewstep.artifacts.workspace import unfinished

    found = [work for stage in chosen.stage or [None] for work in unfinished(stage)]
    for work in found:
        line = f"deleted: {work}, {decimal(work.size)}"
        work.delete()
        print(line)
    if not found:
        print("nothing unfinished")
