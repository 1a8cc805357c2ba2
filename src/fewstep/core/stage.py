"""What every stage script has in common: quiet libraries, readable errors, exit codes, the launcher."""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from fewstep.core.errors import UserError
from fewstep.core.garbage import collect_rarely
from fewstep.core.quiet import BEGAN_IN, quiet
from fewstep.core.switches import switch

OUT_OF_MEMORY = "the device is out of memory"
WAY_OUT = "see FEWSTEP_MICRO_BATCH and FEWSTEP_BATCH in docs/machine.md; `fewstep check` estimates"
LAUNCHED = "FEWSTEP_LAUNCHED"
"""Environment variable, set before a launcher starts, so that its processes do not start it again."""


def run(main: Callable[[], None], writes: Path, several: bool = False) -> None:
    """Run a stage's `main`, which makes `writes`.

    several: it can run in several processes; they are started here if the machine is set up for them.

    Exit status: 0 done; 1 a UserError or too little memory, printed without a traceback; 130 interrupted
    (training has saved its state). Any other exception is a bug and keeps its traceback.
    """
    quiet()
    collect_rarely()
    for name in ("FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_SYNC_MODULE_STATES"):
        # Otherwise the libraries read weights in rank 0 only, and leave them empty in the other ranks.
        os.environ[name] = "false"
    launched = "LOCAL_RANK" in os.environ
    if several and not launched and LAUNCHED not in os.environ:
        start_several(launcher())
    if launched and os.environ.get("RANK", "0") != "0":
        # Only rank 0 prints to stdout; errors of every rank go to stderr.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"{Path(sys.argv[0]).stem}: writes {writes}", flush=True)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except RuntimeError as error:
        # Accelerators raise torch.OutOfMemoryError; the host raises a plain RuntimeError with this message.
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        message = str(error).strip().splitlines()[0]
        print(f"error: {OUT_OF_MEMORY}: {message}; {WAY_OUT}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted; run `dvc repro` again to go on", file=sys.stderr, flush=True)
        raise SystemExit(130) from None


def launcher() -> list[str]:
    """The command that starts a script in several processes; an empty list: use one process.

    FEWSTEP_LAUNCH decides if it is set (empty: one process), else `num_processes` in accelerate's config.
    """
    chosen = switch("LAUNCH", "auto")
    if chosen != "auto":
        return shlex.split(chosen)
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if not Path(default_config_file).is_file():
        return []
    several = getattr(load_config_from_file(None), "num_processes", 1) > 1
    return [switch("PYTHON", sys.executable), "-m", "accelerate.commands.launch"] if several else []


def start_several(command: list[str]) -> None:
    """Replace this process by `command` with this script and its arguments; an empty command does nothing."""
    if not command:
        return
    try:
        os.execvpe(command[0], [*command, *sys.argv], {**BEGAN_IN, LAUNCHED: "1"})
    except OSError as error:
        print(f"error: FEWSTEP_LAUNCH: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
