"""What every stage script has in common: quiet libraries, readable failures, honest exit codes."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from fewstep.errors import UserError


def run(main: Callable[[], None], writes: Path) -> None:
    """Run a stage's `main`, which makes `writes`.

    Exit status: 0 done; 1 a UserError, printed without a traceback; 130 interrupted (training has
    saved its state). Any other exception is a bug and keeps its traceback.
    """
    for name in ("DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"{Path(sys.argv[0]).stem}: writes {writes}", flush=True)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted; run `dvc repro` again to go on", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
