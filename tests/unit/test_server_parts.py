"""What stands in the way of a Prefect server is one line that names the port or variable to change."""

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import prefect
import pytest
from flows import background, probing, server
from flows.addresses import api_address, avoid_proxies_on_loopback, next_port, proxy_of
from flows.probing import NothingThereError, version_of

from fewstep.core.errors import UserError
from tests.integration.others import Reply, answering, json_reply, listening
from tests.integration.server import free_port

TRUE, PLAIN = json_reply("true"), Reply(404, b"", "text/plain")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        for spelling in (name, name.upper()):
            # Set first, so that what a test leaves behind is taken away.
            monkeypatch.setenv(spelling, "")
            monkeypatch.delenv(spelling)


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> Iterator[Path]:
    """A home of Prefect without anything."""
    with prefect.settings.temporary_settings({prefect.settings.PREFECT_HOME: tmp_path}):
        yield tmp_path


def at(port: int) -> str:
    """The address of an API there."""
    return f"http://127.0.0.1:{port}/api"


def prefect_of(version: str) -> dict[str, Reply]:
    """Replies of a Prefect server."""
    return {"/api/health": TRUE, "/api/admin/version": json_reply(f'"{version}"')}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(), "status 200, text/html"),
        (Reply(404), "status 404, text/html"),
        (Reply(401), "status 401"),
        (Reply(403), "status 403"),
        (Reply(503), "status 503"),
        (TRUE, "status 200, application/json when asked for its version"),
        (json_reply('{"status": "ok"}'), "status 200, application/json"),
        (json_reply('"3.1.0"'), "status 200, application/json"),
        (Reply(302, b"", location="https://me:word@login.example/"), r"a redirect to https://\.\.\.@login\."),
        (Reply(body=b"x" * (64 << 20)), "status 200, text/html"),
    ],
)
def test_another_program_on_the_port_is_named_with_the_way_out(reply: Reply, message: str) -> None:
    with answering(reply) as port:
        out = f"choose another port, PREFECT_API_URL={at(port + 1)}"
        with pytest.raises(
            UserError, match=rf"{at(port)} is no Prefect server \({message}.*\): stop it, or {out}$"
        ):
            server.there(at(port))


def test_what_speaks_no_http_or_not_at_all_is_no_prefect_server(monkeypatch: pytest.MonkeyPatch) -> None:
    mail = listening(b"220 mail.example ESMTP\r\n")
    with mail as port, pytest.raises(UserError, match=r"no Prefect server \(no HTTP, .*https://\)"):
        server.there(at(port))
    monkeypatch.setattr(probing, "SECONDS", 0.3)
    with listening() as port, pytest.raises(UserError, match=r"no Prefect server \(no answer within 0 s\)"):
        server.there(at(port))


def test_a_scheme_that_does_not_fit_the_port_is_named(tmp_path: Path) -> None:
    with answering(PLAIN) as port, pytest.raises(UserError, match=r"no TLS, .*plain port, write http://"):
        server.there(at(port).replace("http:", "https:"))
    pair = tmp_path / "pair.pem"
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost")
    subprocess.run([*made, "-keyout", pair, "-out", tmp_path / "own.pem"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", pair)
    with answering(PLAIN, wrap=context) as port:
        with pytest.raises(UserError, match=r"no HTTP, .*if it is a TLS port, write https://"):
            server.there(at(port))
        with pytest.raises(UserError, match=r"not trusted .* set PREFECT_API_SSL_CERT_FILE"):
            server.there(at(port).replace("http:", "https:"))


def test_a_prefect_server_is_taken_unless_its_version_does_not_fit() -> None:
    ours = prefect.__version__
    for theirs in ("2.20.3", "99.0.0"):
        refused = pytest.raises(UserError, match=f"is Prefect {theirs}, this environment has {ours}")
        with answering(PLAIN, prefect_of(theirs)) as port, refused:
            server.there(at(port))
    with answering(PLAIN, prefect_of("3.0.0")) as port:
        assert f"Prefect 3.0.0, older than {ours}" in server.there(at(port))
    with answering(PLAIN, prefect_of(ours)) as port:
        assert server.there(at(port)) == f"there is a server at {at(port)}"
    closed = {"/api/health": TRUE, "/api/admin/version": json_reply('{"detail": "Unauthorized"}', 401)}
    with answering(PLAIN, closed) as port, pytest.raises(UserError, match="set PREFECT_API_AUTH_STRING"):
        server.there(at(port))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is not set"),
        ("127.0.0.1:4200/api", "does not begin with http:// or https://"),
        ("localhost:4200/api", "does not begin with http:// or https://"),
        ("http://127.0.0.1:port/api", "Port could not be cast"),
        ("http://127.0.0.1:70000/api", "Port out of range"),
        ("http://127.0.0.1:0/api", "names port 0"),
        ("http://[::1:4200/api", "Invalid IPv6 URL"),
        ("http:///api", "names no host"),
        ("http://127.0.0.1:4200", "lacks the path of the API"),
        ("http://127.0.0.1:4200/api?a=b", "ends with a query"),
    ],
)
def test_a_malformed_address_is_shown_beside_a_good_one(url: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"PREFECT_API_URL.*{message}.*; expected one like http://127"):
        api_address(url)


def test_a_good_address_is_taken_as_it_is() -> None:
    for url in (at(4200), "https://me:word@host/prefect/api", "http://[::1]:4200/api"):
        assert api_address(f" {url}/ ") == url
    assert next_port("http://[::1]:80/api") == "http://[::1]:4201/api"


def test_the_loopback_is_asked_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    with answering(PLAIN, prefect_of("3.9")) as port, answering(Reply(403), heard=heard) as proxy:
        for name in PROXIES[:3]:
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        with pytest.raises(UserError, match=rf"proxy of http_proxy=http://127.0.0.1:{proxy} \(status 403"):
            version_of(at(port))
        assert heard == [f"GET {at(port)}/health"]
        avoid_proxies_on_loopback()
        for host in ("127.0.0.1", "localhost"):
            assert str(version_of(at(port).replace("127.0.0.1", host))) == "3.9"
        assert len(heard) == 1
        with pytest.raises(
            UserError, match=r"if prefect\.example is reached without it, add that to no_proxy"
        ):
            server.there("http://prefect.example:4200/api")
        assert len(heard) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": ""}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": " .example , localhost"}, ".example,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "a", "no_proxy": "b"}, "b,localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_hosts_without_a_proxy_stay_so(before: dict[str, str], after: str) -> None:
    avoid_proxies_on_loopback(before)
    assert before["no_proxy"] == before["NO_PROXY"] == after
    avoid_proxies_on_loopback(before)
    assert before["no_proxy"] == after


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://me:word@127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=r"HTTP_PROXY=http://\.\.\.@127\.0\.0\.1:\d+ cannot be reached"):
        server.there("http://prefect.example:4200/api")
    assert proxy_of("https://prefect.example/api") is None
    monkeypatch.setenv("all_proxy", "foo://127.0.0.1:9")
    with pytest.raises(
        UserError, match="all_proxy, http_proxy: of no use to Prefect's client: Unknown scheme"
    ):
        server.there(at(4200))


def test_no_server_is_started_for_an_address_that_it_would_not_answer_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    for url, message in (
        ("http://nowhere.invalid:4200/api", "no Prefect server answers at .*another machine: start it there"),
        (f"https://127.0.0.1:{port}/api", "a server that is started here speaks plain http"),
        (f"http://127.0.0.1:{port}/prefect", "a server that is started here answers at /api"),
    ):
        with pytest.raises(UserError, match=message):
            server.there(url)
    # An address of the documentation's network (RFC 5737) is no machine's.
    with pytest.raises(UserError, match="another machine: start it there"):
        background.begin("http://192.0.2.1:4200/api", "timed out")
    with pytest.raises(UserError, match="names no port to start a server at"):
        background.begin("http://127.0.0.1/api", "refused")
    host = {prefect.settings.PREFECT_SERVER_API_HOST: "127.0.0.9"}
    elsewhere = pytest.raises(
        UserError, match=r"PREFECT_SERVER_API_HOST=127\.0\.0\.9: .* set it to 127\.0\.0\.1"
    )
    with prefect.settings.temporary_settings(host), elsewhere:
        server.there(at(port))


def test_a_port_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} is taken .* PREFECT_API_URL={at(port + 1)}"):
            server.there(at(port))

    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(UserError, match=rf"port 81 is not for this user .* PREFECT_API_URL={at(4201)}"):
        background.begin(at(81), "refused")


def test_a_home_that_cannot_be_written_is_named(home: Path) -> None:
    (home / "server.log").symlink_to("/dev/full")
    with pytest.raises(UserError, match="PREFECT_HOME: cannot write the log: No space left on device"):
        server.there(at(free_port()))
    (home / "server.log").unlink()
    (home / "server.log").mkdir()
    with pytest.raises(UserError, match=f"PREFECT_HOME: cannot write {home}/server.log: Is a directory"):
        server.there(at(free_port()))
    (home / "server.log").rmdir()
    (home / "server.pid").mkdir()
    with pytest.raises(UserError, match=f"PREFECT_HOME: cannot write {home}/server.pid: Is a directory"):
        server.there(at(free_port()))


def test_a_pid_file_counts_while_its_server_is_there(home: Path) -> None:
    pid, port = home / "server.pid", free_port()
    for left_over in ("", "nothing", "4194304000", str(os.getpid())):
        pid.write_text(left_over)
        assert background.running(pid, port, at(port)) is None
    script = "import time; time.sleep(3600)"
    with subprocess.Popen([sys.executable, "-c", script, "prefect", "--port", "4200"]) as other:
        try:
            pid.write_text(str(other.pid))
            running = background.running(pid, 4200, at(4200))
            assert running is not None and running.pid == other.pid
            with pytest.raises(UserError, match=rf"process {other.pid}\) is at another port: .*server stop"):
                background.running(pid, port, at(port))
        finally:
            other.kill()
        while background.alive(running):
            pass
        assert background.running(pid, 4200, at(4200)) is None, "a zombie is none"


def test_the_error_of_the_newest_start_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(
        f"{background.BEGUN} x\nold.Error: of yesterday\n{background.BEGUN} y\nTraceback\n"
        "sqlite3.OperationalError: disk is full\n(Background: https://x)\n\x1b[31mServer stopped!\x1b[0m\n"
    )
    assert background.last_error(log) == "sqlite3.OperationalError: disk is full"
    log.write_text(f"{background.BEGUN} x\nold.Error: of yesterday\n{background.BEGUN} y\n\n")
    assert background.last_error(log) == "it wrote nothing"
    log.write_text(f"{background.BEGUN} x\n\x1b[31mPort 4200 is already in use.\x1b[0m\n")
    assert background.last_error(log) == "Port 4200 is already in use."


def test_nothing_there_is_distinguished_from_something_else() -> None:
    with pytest.raises(NothingThereError, match="refused"):
        version_of(at(free_port()))
