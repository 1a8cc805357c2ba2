"""Runs a command and ends it, with all its processes, when the parent process asks for it or dies.

    python flows/guard.py PIPE LEASES COMMAND ...

PIPE is the descriptor of a pipe's read end. Once the parent closes the write end or dies, everything that the
command has started is ended: SIGINT, with time to save a state, then SIGTERM, then SIGKILL. LEASES are
descriptors, "7,8", that the command inherits. Only the standard library is imported, because a guard runs
beside every stage.
"""

import os
import signal
import subprocess
import sys
import threading
import time

SOFT, HARD = 6.0, 1.0
"""Seconds to wait after SIGINT, in which a training saves its state, and after SIGTERM or SIGKILL."""


def main() -> int:
    """Run the command. Returns its exit status as a shell reports it."""
    pipe, leases = int(sys.argv[1]), [int(number) for number in sys.argv[2].split(",") if number]
    # Background jobs of a shell ignore SIGINT, and the command would inherit that.
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
    """End all processes of the child's group: SIGINT, SIGTERM, SIGKILL."""
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
