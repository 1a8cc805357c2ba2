"""A Prefect server in the background, which outlives the process that started it.

`prefect server stop` ends it.
"""

import errno
import os
import re
import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from prefect.settings import get_current_settings

from fewstep.core.errors import UserError
from flows.addresses import EXAMPLE, next_port, shown
from flows.probing import NothingThereError, version_of

SECONDS = 120.0
"""Time limit for the first answer of a new server."""
DEFAULT = "127.0.0.1"
"""Where Prefect listens when PREFECT_SERVER_API_HOST is not set."""
EVERYWHERE = ("0.0.0.0", "::")
BEGUN = "fewstep begins a server at"
"""First words of the log line that marks each start."""
ERROR = re.compile(r"[\w.]*(Error|Exception): ")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def begin(url: str, reason: str) -> Path:
    """Start a server for `url` and wait until it answers. Returns its log's path.

    reason: why nothing answers there now. `prefect server start --background` is not used: its server writes
    into pipes that nobody reads, and ends with the first line that it logs. Raises UserError when no server
    can be started there.
    """
    host, port = place_of(url)
    home = get_current_settings().home
    log, pid = home / "server.log", home / "server.pid"
    if already := running(pid, port, url):
        await_answer(url, already, log)
        return log
    require_place(url, host, port, reason)
    command = [sys.executable, "-m", "prefect", "server", "start"]
    command += ["--host", listening_host(url, host), "--port", str(port)]
    try:
        home.mkdir(parents=True, exist_ok=True)
        with log.open("a") as out:
            print(BEGUN, shown(url), file=out, flush=True)
            server = psutil.Popen(
                command,
                env={"PREFECT_SERVER_ANALYTICS_ENABLED": "false", **os.environ, "COLUMNS": "500"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C must only reach the worker.
            )
    except OSError as error:
        raise unwritable(error) from None
    try:
        pid.write_text(str(server.pid))
        await_answer(url, server, log)
    except BaseException as error:
        stop(server)
        if isinstance(error, OSError):
            raise unwritable(error) from None
        pid.unlink(missing_ok=True)
        raise
    return log


def unwritable(error: OSError) -> UserError:
    """The error when no file can be written to Prefect's home folder."""
    return UserError(f"PREFECT_HOME: cannot write {error.filename or 'the log'}: {error.strerror}")


def place_of(url: str) -> tuple[str, int]:
    """Host and port to listen at. Raises UserError when a server started here cannot have this URL."""
    parts = urlsplit(url)
    base = get_current_settings().server.api.base_path or "/api"
    wrong = None
    if parts.scheme != "http":
        wrong = "a server that is started here speaks plain http"
    elif parts.port is None:
        wrong = "names no port to start a server at"
    elif parts.path != base:
        wrong = f"a server that is started here answers at {base}"
    if wrong or parts.port is None or parts.hostname is None:
        raise UserError(f"PREFECT_API_URL={shown(url)}: nothing answers, and {wrong}; e.g. {EXAMPLE}")
    return parts.hostname, parts.port


def running(pid: Path, port: int, url: str) -> psutil.Process | None:
    """The running server of the PID file, which is still starting up at `port`.

    None where the file is stale. Raises UserError when that server is at another port.
    """
    try:
        server = psutil.Process(int(pid.read_text()))
        command = server.cmdline()
    except (OSError, ValueError, psutil.Error):
        return None
    if "prefect" not in " ".join(command) or not alive(server):
        return None
    if str(port) in command:
        return server
    raise UserError(
        f"nothing answers at {shown(url)}, and the server of {pid} (process {server.pid}) is at "
        "another port: set PREFECT_API_URL to that, or `prefect server stop` first"
    )


def require_place(url: str, host: str, port: int, reason: str) -> None:
    """Raises UserError when no server of this machine can listen at the address."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
    except OSError as error:
        other = f"choose another port, PREFECT_API_URL={next_port(url)}"
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            words = f"no Prefect server answers at {shown(url)} ({reason}), another machine: start it there"
        elif error.errno == errno.EADDRINUSE:
            words = f"port {port} is taken by a program that does not answer ({reason}): stop it, or {other}"
        elif error.errno in (errno.EACCES, errno.EPERM):
            words = f"port {port} is not for this user ({error.strerror}): {other}"
        else:
            words = f"no server can listen at {shown(url)} ({error.strerror}): {other}"
        raise UserError(words) from None


def listening_host(url: str, host: str) -> str:
    """The host at which a server must listen to answer at `host` of this machine: PREFECT_SERVER_API_HOST.

    If that is Prefect's default and `host` is a loopback name, `host`. Raises UserError on other mismatches.
    """
    chosen = get_current_settings().server.api.host
    asked = addresses(host)
    if chosen in EVERYWHERE or addresses(chosen) & asked:
        return chosen
    if chosen == DEFAULT and all(ip_address(address).is_loopback for address in asked):
        return host
    raise UserError(
        f"PREFECT_SERVER_API_HOST={chosen}: a server that listens there does not answer at {shown(url)}; "
        f"set it to {host}, or to 0.0.0.0 for all (docs/operations.md, Access)"
    )


def addresses(host: str) -> set[str]:
    """Numeric addresses of a host."""
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except socket.gaierror:
        return set()


def await_answer(url: str, server: psutil.Process, log: Path) -> None:
    """Wait until the server answers. Raises UserError when it ends instead, with the error in its log."""
    limit = time.monotonic() + SECONDS
    while True:
        try:
            version_of(url)
            return
        except NothingThereError:
            pass
        if not alive(server):
            raise UserError(f"the Prefect server did not start: {last_error(log)} (all of it: {log})")
        if time.monotonic() > limit:
            raise UserError(
                f"the Prefect server does not answer at {shown(url)} within {SECONDS:.0f} s (see {log})"
            )
        time.sleep(0.5)


def alive(server: psutil.Process) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return bool(server.is_running()) and server.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stop(server: psutil.Process) -> None:
    """End a server that failed to start."""
    try:
        server.terminate()
        server.wait(10)
    except psutil.TimeoutExpired:
        server.kill()
    except psutil.NoSuchProcess:
        pass


def last_error(log: Path) -> str:
    """The last line that names an error since the newest start in the log; without one, the last line."""
    words = log.read_text(errors="replace").rpartition(BEGUN)[2]
    lines = [line.strip() for line in COLOUR.sub("", words).splitlines()[1:] if line.strip()]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines or ["it wrote nothing"])[-1]
