"""fewstep clean: delete unfinished work in .checkpoints."""

import argparse


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("stage", nargs="*", help="its name in DVC, e.g. train_teacher; default: all")


def run(chosen: argparse.Namespace) -> None:
    """Delete, and print what was deleted. Raises UserError where a running stage uses it."""
    from rich.filesize import decimal

    from fewstep.artifacts.workspace import unfinished

    unfinished_work = [work for stage in chosen.stage or [None] for work in unfinished(stage)]
    for work in unfinished_work:
        line = f"deleted: {work}, {decimal(work.size)}"
        work.delete()
        print(line)
    if not unfinished_work:
        print("nothing unfinished")
