"""Has the server run a script in place of a Python program, or runs the program itself.

    python -I -S client.py FOLDER PROGRAM ARGUMENT ...

FOLDER holds the server's socket and the surroundings that it started in. PROGRAM is a Python interpreter, or
a script of one. Only the standard library is imported, because this runs before each stage.
"""

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

SOCKET, SURROUNDINGS = "socket", "surroundings.json"
"""Files in FOLDER."""
FREE = (
    *("AWS_", "DVC_", "FEWSTEP_", "GIT_", "PREFECT_", "PYTEST_"),
    *("ACCELERATE_", "FSDP_", "GROUP_", "LOCAL_", "MASTER_", "ROLE_", "TORCHELASTIC_"),
)
"""Variables with these prefixes may differ from the server's: the libraries do not read them at import.

The first are of programs, the second of launchers of several processes.
"""
FREE_NAMES = {
    *("_", "COLUMNS", "LINES", "NO_PROXY", "OLDPWD", "PATH", "PWD", "SHLVL", "TMPDIR", "no_proxy"),
    *("CUDA_VISIBLE_DEVICES", "HF_TOKEN", "PYTHON_EXEC", "RANK", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
    "WORLD_SIZE",
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONUNBUFFERED"),
}
"""As are these; the server does with the last three what Python does with them."""
STATUS = ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
"""Lines of Linux's /proc/self/status: whom the process belongs to, and what it may do."""
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that the forked process gets in this one's place; if this one dies, the server kills it."""


def main(folder: str, program: str, *arguments: str) -> NoReturn:
    """End as the program ends: with its exit status, or by its signal."""
    is_python = Path(program).name.startswith("python")
    unbuffered = is_python and arguments[:1] == ("-u",)
    script = script_of(arguments[unbuffered:]) if is_python else [program, *arguments]
    if script and shares_surroundings(folder):
        with socket.socket(socket.AF_UNIX) as server:
            status = run(script, unbuffered, server, str(Path(folder, SOCKET)))
        if status is not None:
            end(status)
    os.execv(program, [program, *arguments])


def script_of(arguments: tuple[str, ...]) -> list[str]:
    """The script that Python would run, or -m and its module, with its arguments; empty: something else."""
    first = arguments[0] if arguments else ""
    is_script = first.endswith(".py") and Path(first).is_file()
    return list(arguments) if is_script or (first == "-m" and len(arguments) > 1) else []


def shares_surroundings(folder: str) -> bool:
    """Whether this process has the surroundings of the folder's server; another user cannot read them."""
    try:
        return bool(json.loads(Path(folder, SURROUNDINGS).read_text()) == surroundings())
    except OSError:
        return False


def surroundings() -> dict[str, Any]:
    """What a forked process has from the server, not from its client.

    Variables, limits, cores, priority, user, rights and namespaces.
    """
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in FREE_NAMES and not name.startswith(FREE)
    }
    limited = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    limits = {name: list(resource.getrlimit(getattr(resource, name))) for name in limited}
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    root = Path("/").stat()
    return {
        "namespaces": {place.name: str(place.readlink()) for place in Path("/proc/self/ns").iterdir()},
        "root": [root.st_dev, root.st_ino],
        "status": {name: status.get(name) for name in STATUS},
        "variables": variables,
        "limits": limits,
        "cores": sorted(os.sched_getaffinity(0)),
        "priority": os.nice(0),
    }


def run(script: list[str], unbuffered: bool, server: socket.socket, address: str) -> int | None:
    """Have the server run the script. Returns its status as of `os.waitpid`, or None: it was not started.

    unbuffered: Python's option -u, with which torch's launcher starts its processes.
    """
    mask = os.umask(0)
    os.umask(mask)
    request = {
        "script": script,
        "unbuffered": unbuffered or bool(os.environ.get("PYTHONUNBUFFERED")),
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "mask": mask,
        "signals": [(number, signal.getsignal(number) is signal.SIG_IGN) for number in FORWARDED],
    }
    message = json.dumps(request).encode()
    try:
        server.connect(address)
        socket.send_fds(server, [len(message).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(message)
        started = server.recv(1)
    except OSError:
        started = b""
    if not started:
        return None
    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: server.send(bytes([number])))
    status = server.recv(4, socket.MSG_WAITALL)
    if len(status) < 4:
        sys.exit("error: the server of fewstep.preload was killed, and this with it")
    return int.from_bytes(status, "big")


def end(status: int) -> NoReturn:
    """End as a process with this status of `os.waitpid` ended."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(*sys.argv[1:])
