"""Programs that are no Prefect server, on ports of the loopback."""

import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Reply(NamedTuple):
    """To any request."""

    status: int = 200
    body: bytes = b"<!doctype html><html><app-root></app-root></html>"
    kind: str = "text/html"
    location: str = ""


def json_reply(body: str, status: int = 200) -> Reply:
    """JSON text as a reply."""
    return Reply(status, body.encode(), "application/json")


@contextmanager
def answering(
    otherwise: Reply,
    replies: Mapping[str, Reply] | None = None,
    heard: list[str] | None = None,
    wrap: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """A server with a reply to each path, and one to all others. Yields its port.

    heard: takes what is asked. wrap: for TLS.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if heard is not None:
                heard.append(f"{self.command} {self.path}")
            reply = (replies or {}).get(self.path, otherwise)
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind)
            if reply.location:
                self.send_header("Location", reply.location)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        do_POST = do_CONNECT = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if wrap is not None:
            server.socket = wrap.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def listening(greeting: bytes | None = None) -> Iterator[int]:
    """A port that accepts connections and, without a greeting, sends nothing. Yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(greeting or b"")

        if greeting is not None:
            threading.Thread(target=greet, daemon=True).start()
        yield server.getsockname()[1]
