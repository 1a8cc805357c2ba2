"""Starts the server and becomes the command."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

from fewstep.core.heap import use_huge_pages
from fewstep.preload import client

HERE = Path(__file__).parent
REPLACED = ("python", "python3", "dvc", "fewstep")
"""Programs that lie beside the interpreter."""
SCRIPT = """#!/bin/sh
exec {command} "$@"
"""


def main() -> None:
    """Replace this process by the command of the arguments, with the server beside it.

    Where the system lacks what the server needs (anything but Linux), the command runs without it.
    """
    command = sys.argv[1:]
    if not command:
        sys.exit("usage: python -m fewstep.preload COMMAND [ARGUMENT ...]")
    if hasattr(os, "pidfd_open"):
        use_huge_pages()
        start()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"error: {command[0]}: {error.strerror}")


def start() -> None:
    """Start the server, and put the programs that ask it first on the PATH. It ends with this process."""
    folder = Path(mkdtemp(prefix="fewstep-preload-"))
    (folder / client.SURROUNDINGS).write_text(json.dumps(client.surroundings()))
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(str(folder / client.SOCKET))
        except OSError as error:
            shutil.rmtree(folder)
            print(
                f"note: stages start as usual: {folder}: {error}; a shorter TMPDIR may help", file=sys.stderr
            )
            return
        listener.listen(socket.SOMAXCONN)
        arguments = [str(listener.fileno()), str(os.getpid()), str(folder)]
        server = [sys.executable, "-P", str(HERE / "server.py"), *arguments]
        # Its imports fit every clone: a stage's own search path comes first.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(server, check=True, pass_fds=[listener.fileno()], env=environment)
    programs = folder / "bin"
    programs.mkdir()
    for name in REPLACED:
        program = Path(sys.executable).with_name(name)
        if program.exists():
            asking = [sys.executable, "-I", "-S", HERE / "client.py", folder, program]
            (programs / name).write_text(SCRIPT.format(command=shlex.join(map(str, asking))))
            (programs / name).chmod(0o755)
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    # Read where a stage starts others in its place, where its start is measured, and by torch's launcher.
    os.environ["FEWSTEP_PYTHON"] = os.environ["PYTHON_EXEC"] = str(programs / "python")


if __name__ == "__main__":
    main()
