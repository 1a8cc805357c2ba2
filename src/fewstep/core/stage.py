"""What every stage script has in common: quiet libraries, readable failures, honest exit codes."""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from fewstep.core.errors import UserError
from fewstep.core.quiet import quiet
from fewstep.core.switches import switch

OUT_OF_MEMORY = "the device is out of memory"
WAY_OUT = "see FEWSTEP_MICRO_BATCH and FEWSTEP_BATCH in docs/machine.md; `fewstep check` estimates"
LAUNCHED = "FEWSTEP_LAUNCHED"
"""Set once a launcher was started: what it starts must not start it again."""


def run(main: Callable[[], None], writes: Path, several: bool = False) -> None:
    """Run a stage's `main`, which makes `writes`.

    several: it may run in several processes; where the machine is set up for them, they are started here.

    Exit status: 0 done; 1 a UserError or too little memory, printed without a traceback; 130 interrupted
    (training has saved its state). Any other exception is a bug and keeps its traceback.
    """
    quiet()
    for name in ("FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_SYNC_MODULE_STATES"):
        # The libraries would read weights in the first process only, and leave them empty in the others.
        os.environ[name] = "false"
    launched = "LOCAL_RANK" in os.environ
    if several and not launched and LAUNCHED not in os.environ:
        start_several(launcher())
    if launched and os.environ.get("RANK", "0") != "0":
        # One process speaks for all; errors go to stderr.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"{Path(sys.argv[0]).stem}: writes {writes}", flush=True)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except RuntimeError as error:
        # torch.OutOfMemoryError of accelerators; of the host, whose type says nothing.
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        said = str(error).strip().splitlines()[0]
        print(f"error: {OUT_OF_MEMORY}: {said}; {WAY_OUT}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted; run `dvc repro` again to go on", file=sys.stderr, flush=True)
        raise SystemExit(130) from None


def launcher() -> list[str]:
    """The command that starts a script in several processes; empty: this machine is to use one.

    FEWSTEP_LAUNCH decides where set (empty: one process), else whether accelerate's own config names several.
    """
    chosen = switch("LAUNCH", "auto")
    if chosen != "auto":
        return shlex.split(chosen)
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if not Path(default_config_file).is_file():
        return []
    several = getattr(load_config_from_file(None), "num_processes", 1) > 1
    return [sys.executable, "-m", "accelerate.commands.launch"] if several else []


def start_several(command: list[str]) -> None:
    """Become `command` with this script and its arguments, if there is a command."""
    if not command:
        return
    os.environ[LAUNCHED] = "1"
    try:
        os.execvp(command[0], [*command, *sys.argv])
    except OSError as error:
        print(f"error: FEWSTEP_LAUNCH: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
