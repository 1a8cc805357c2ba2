"""The command line: `fewstep init | check | sample | evaluate | report | clean`, one file per command."""

import argparse
import sys
from collections.abc import Callable, Sequence

from fewstep.cli import check, clean, evaluate, init, report, sample
from fewstep.core.errors import UserError
from fewstep.core.garbage import collect_rarely
from fewstep.core.quiet import quiet

COMMANDS = (init, check, sample, evaluate, report, clean)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exit status 1, and one readable message, on a UserError."""
    quiet()
    collect_rarely()
    chosen = parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = chosen.command
    try:
        command(chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="fewstep", description="Few-step distillation of diffusion models.")
    commands = top.add_subparsers(required=True)
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        one = commands.add_parser(name, help=(module.__doc__ or "").partition(":")[2].strip().rstrip("."))
        one.set_defaults(command=module.run)
        module.options(one)
    return top
