"""A terminal for a command."""

import os
import pty
import subprocess
import termios
from pathlib import Path


def on_a_terminal(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Output of a command whose stdout and stderr are a terminal's."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 100))
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=its, stderr=its, stdin=its):
        os.close(its)
        output = b""
        try:
            while more := os.read(ours, 4096):
                output += more
        except OSError:  # Linux's way to say that nobody is there any more.
            pass
        os.close(ours)
    return output.decode().replace("\r\n", "\n")
