"""Imports the large libraries once, then runs each script in a process forked from this one.

    python -P server.py LISTENER OWNER FOLDER

LISTENER is the descriptor of the socket that clients connect to (client.py). The server ends with the process
OWNER, and removes FOLDER. It imports nothing of this project: a stage runs the code of its own clone.
"""

import atexit
import gc
import json
import logging
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module, invalidate_caches
from importlib.machinery import PathFinder
from pathlib import Path
from socketserver import BaseRequestHandler, ForkingMixIn, UnixStreamServer
from types import ModuleType
from typing import Any, NoReturn

LIBRARIES = (
    *("torch._dynamo", "torch.utils.flop_counter", "torch.utils.tensorboard", "torchvision.transforms.v2"),
    *("transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip"),
    *("diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition"),
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    *("accelerate", "peft", "safetensors.torch", "webdataset", "scipy.linalg", "scipy.stats", "PIL.Image"),
    *("pydantic.main", "pydantic.networks", "platformdirs", "rich.progress", "rich.table", "yaml"),
    *("dvc.cli.parser", "dvc.repo.reproduce", "dvc.repo.status", "dvc.lock", "dvc.scm", "networkx"),
)
"""What stages and DVC import, directly or not."""


class Server(ForkingMixIn, UnixStreamServer):
    """Forks a keeper for each client."""

    max_children = sys.maxsize

    def __init__(self, listener: socket.socket, owner: int) -> None:
        super().__init__("", Keeper, bind_and_activate=False)
        self.socket.close()
        self.socket, self.owner = listener, owner

    def service_actions(self) -> None:
        """Twice a second: end with the owner, whose descriptor is ready then."""
        super().service_actions()
        if select.select([self.owner], [], [], 0)[0]:
            sys.exit()


class Keeper(BaseRequestHandler):
    """A process that forks a client's script, passes signals on to it, and tells how it ended."""

    def handle(self) -> None:
        """Serve one client. A client that dies takes its script with it."""
        assert isinstance(self.server, Server)
        self.server.socket.close()
        client: socket.socket = self.request
        size, descriptors, _, _ = socket.recv_fds(client, 8, 3)
        request = json.loads(client.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
        if shadowed(search_path(request)):
            return
        script = os.fork()
        if script == 0:
            client.close()
            become(request, descriptors)
        with suppress(OSError):  # It has done so itself.
            os.setpgid(script, script)
        for descriptor in descriptors:
            os.close(descriptor)
        with suppress(BrokenPipeError):  # The client was killed.
            client.sendall(b"\n")
            client.sendall(keep(script, client).to_bytes(4, "big"))


def keep(script: int, client: socket.socket) -> int:
    """Send the client's signals to the script and its children. Returns its status as of `os.waitpid`."""
    end = os.pidfd_open(script)
    waiting: list[Any] = [end, client]
    while end not in select.select(waiting, [], [])[0]:
        number = client.recv(1)
        if not number:
            waiting.remove(client)
        with suppress(ProcessLookupError):
            os.killpg(script, number[0] if number else signal.SIGKILL)
    return os.waitpid(script, 0)[1]


def search_path(request: dict[str, Any]) -> list[str]:
    """What Python puts before the libraries in `sys.path`: the script's folder or its own, and PYTHONPATH."""
    folder, variables, script = Path(request["folder"]), request["environment"], request["script"][0]
    own = folder if script == "-m" else (folder / script).resolve().parent
    listed = variables.get("PYTHONPATH")
    others = [os.path.abspath(folder / entry) for entry in listed.split(os.pathsep)] if listed else []  # noqa: PTH100
    return [str(own), *others]


def shadowed(path: list[str]) -> bool:
    """Whether one of the imported libraries would come from one of these folders.

    A folder without `__init__.py` shadows none: Python prefers a module later in the search path.
    """
    invalidate_caches()
    libraries = {name.partition(".")[0] for name in sys.modules} - {"__main__"}
    found = (PathFinder.find_spec(name, path) for name in libraries)
    return any(spec is not None and spec.loader is not None for spec in found)


def become(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Run the script as Python would: its streams, folder, variables, arguments, search path, exit status."""
    os.setpgid(0, 0)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number, ignored in request["signals"]:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if ignored else usual)
    os.chdir(request["folder"])
    os.umask(request["mask"])
    variables = request["environment"]
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # TMPDIR may be another one.
    sys.path[:0] = search_path(request)
    sys.dont_write_bytecode = bool(variables.get("PYTHONDONTWRITEBYTECODE"))
    for stream, by_lines in ((sys.stdout, os.isatty(1)), (sys.stderr, True)):
        lines = by_lines and not request["unbuffered"]
        stream.reconfigure(line_buffering=lines, write_through=request["unbuffered"])  # type: ignore[union-attr]
    sys.argv[:] = request["script"]
    program = sys.argv[1] if sys.argv[0] == "-m" else Path(sys.argv[0]).name
    if program in ("dvc", "fewstep"):
        import_module("dvc.logger").setup()
    if sys.argv[0] == "-m":
        del sys.argv[0]
        status = status_of(lambda: runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True))
    else:
        status = status_of(lambda: run(Path(sys.argv[0])))
    # The interpreter would take another second to free its modules one by one.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)


def run(script: Path) -> None:
    """Run a script as the main module."""
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__file__ = str(script.absolute())
    exec(compile(script.read_bytes(), main.__file__, "exec"), main.__dict__)


def status_of(program: Callable[[], Any]) -> int:
    """Run a program. Returns its exit status; an exception is printed, without this module's part of it."""
    try:
        program()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return int(end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def undo_logging_of_dvc() -> None:
    """Undo what DVC does at import: it binds its log to the streams of that moment, here the server's.

    A forked process that is DVC does it again; see `become`.
    """
    initialise: Any = sys.modules.get("colorama.initialise")
    if initialise is not None:
        initialise.deinit()
        atexit.unregister(initialise.reset_all)
        initialise.atexit_done = False
    for name in ("dvc", "dvc_objects", "dvc_data"):
        logging.getLogger(name).handlers.clear()


def accelerated() -> bool:
    """Whether there is an accelerator: then every script starts as usual.

    What a process knows of its devices is lost in processes forked from it. Another process asks, therefore.
    """
    child = os.fork()
    if child == 0:
        os._exit(import_module("torch").accelerator.is_available())
    return os.waitpid(child, 0)[1] != 0


def main(descriptor: str, owner: str, folder: str) -> None:
    """Serve until the owner ends, in a process that is nobody's child; this one ends at once."""
    end = os.pidfd_open(int(owner))
    if os.fork():
        os._exit(0)
    os.setsid()
    try:
        with socket.socket(fileno=int(descriptor)) as listener:
            for library in LIBRARIES:
                with suppress(ImportError):
                    import_module(library)
            undo_logging_of_dvc()
            gc.collect()
            gc.freeze()
            if not accelerated():
                Server(listener, end).serve_forever()
        select.select([end], [], [])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
