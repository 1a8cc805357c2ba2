"""Runs a command that ends when whoever started it wants it to, or is gone.

    python flows/guard.py PIPE LEASES COMMAND ...

PIPE is the number of one end of a pipe. Once the other is closed, by its owner or by its owner's death,
everything the command has started is ended: SIGINT, with time to save a state, then SIGTERM, then SIGKILL.
LEASES are numbers of descriptors, "7,8", that the command inherits. Nothing but the standard library is
imported, for this waits beside every stage.
"""

import os
import signal
import subprocess
import sys
import threading
import time

SOFT, HARD = 6.0, 1.0
"""Seconds for a training to save its state after SIGINT; after SIGTERM."""


def main() -> int:
    """The command's exit status, as a shell gives it."""
    pipe, leases = int(sys.argv[1]), [int(number) for number in sys.argv[2].split(",") if number]
    # A shell's background jobs ignore it, and so would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen(sys.argv[3:], start_new_session=True, pass_fds=leases)
    threading.Thread(target=end_with, args=(pipe, child), daemon=True).start()
    status = child.wait()
    end(child)
    return status if status >= 0 else 128 - status


def end_with(pipe: int, child: subprocess.Popen[bytes]) -> None:
    """Wait until the pipe's other end is closed, then end the child."""
    os.read(pipe, 1)
    end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """See to it that nothing of the child's group is left."""
    for number, patience in ((signal.SIGINT, SOFT), (signal.SIGTERM, HARD), (signal.SIGKILL, HARD)):
        limit = time.monotonic() + patience
        try:
            os.killpg(child.pid, number)
            while time.monotonic() < limit:
                child.poll()
                os.killpg(child.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


if __name__ == "__main__":
    sys.exit(main())
