"""What answers at the address of an API: a Prefect server and its version, something else, or nothing."""

import base64
import json
import ssl
import time
from typing import NamedTuple
from urllib.parse import urlsplit

import certifi
import httpx
from packaging.version import InvalidVersion, Version
from prefect.settings import get_current_settings

from fewstep.core.errors import UserError
from flows.addresses import LOOPBACK, next_port, proxies, proxy_of, shown

SECONDS = 10.0
"""Time limit of an answer."""
LARGEST = 4096
"""Bytes of an answer after which reading stops; those of Prefect are shorter."""


class NothingThereError(Exception):
    """No connection is possible; the message is the reason."""


class Answer(NamedTuple):
    """Answer to a GET. kind: content type. location: target of a redirect, or "". body: its first bytes."""

    status: int
    kind: str
    location: str
    body: bytes

    def __str__(self) -> str:
        if self.location:
            return f"a redirect to {shown(self.location)}"
        return f"status {self.status}" + (f", {self.kind}" if self.kind else "")


def version_of(url: str) -> Version:
    """The version of the Prefect server at this address.

    Raises NothingThereError when no connection is possible, UserError when something else answers there.
    """
    with client_for(url) as client:
        health = ask(client, url, "/health")
        if health.status != 200 or health.body.strip() != b"true":
            raise another(url, str(health))
        answer = ask(client, url, "/admin/version")
    if answer.status in (401, 403):
        raise UserError(
            f"the Prefect server at {shown(url)} refuses this client (status {answer.status}): "
            "set PREFECT_API_AUTH_STRING to its PREFECT_SERVER_API_AUTH_STRING"
        )
    try:
        return Version(json.loads(answer.body))
    except (ValueError, TypeError, InvalidVersion):
        raise another(url, f"{answer} when asked for its version") from None


def client_for(url: str) -> httpx.Client:
    """A client with Prefect's settings for certificates, passwords and headers.

    Raises UserError when these settings, or a proxy of the environment, cannot be used.
    """
    settings = get_current_settings()
    headers = {name: str(value) for name, value in settings.client.custom_headers.items()}
    if settings.api.auth_string:
        secret = settings.api.auth_string.get_secret_value()
        headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    file = settings.api.ssl_cert_file or certifi.where()
    try:
        trusted = ssl.create_default_context(cafile=file)
    except OSError as error:
        raise UserError(f"PREFECT_API_SSL_CERT_FILE={file}: {first_line(error)}") from None
    verify = False if settings.api.tls_insecure_skip_verify else trusted
    try:
        return httpx.Client(timeout=SECONDS, headers=headers, verify=verify)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        # httpx sets up all proxies of the environment, for any URL; Prefect's client does the same.
        raise UserError(f"{proxies()}: of no use to Prefect's client: {first_line(error)}") from None


def ask(client: httpx.Client, url: str, path: str) -> Answer:
    """The answer to a GET. Raises as `version_of`."""
    limit = time.monotonic() + SECONDS
    try:
        with client.stream("GET", url + path) as answer:
            body = b""
            # The answer may be endless.
            for chunk in answer.iter_bytes():
                body += chunk
                if time.monotonic() > limit:
                    raise httpx.ReadTimeout("too slow")
                if len(body) > LARGEST:
                    break
            kind = answer.headers.get("content-type", "").partition(";")[0]
            return Answer(answer.status_code, kind, answer.headers.get("location", ""), body)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise unconnected(url, first_line(error)) from None
    except httpx.TimeoutException:
        raise another(url, f"no answer within {SECONDS:.0f} s") from None
    except httpx.HTTPError as error:
        tls = "; if it is a TLS port, write https://" if url.startswith("http:") else ""
        raise another(url, f"no HTTP, {first_line(error)}{tls}") from None


def unconnected(url: str, reason: str) -> Exception:
    """The error for a failed connection: of a proxy, of TLS, or NothingThereError."""
    if proxy := proxy_of(url):
        return UserError(f"the proxy of {proxy} cannot be reached ({reason}); {way_round(url)}")
    if "CERTIFICATE" in reason:
        return UserError(f"{shown(url)}: not trusted ({reason}): set PREFECT_API_SSL_CERT_FILE")
    if "SSL" in reason:
        return another(url, f"no TLS, {reason}; if it is a plain port, write http://")
    return NothingThereError(reason)


def another(url: str, what: str) -> UserError:
    """The error for an address at which something other than a Prefect server answers."""
    parts = urlsplit(url)
    if proxy := proxy_of(url):
        return UserError(
            f"no Prefect server answers at {shown(url)} through the proxy of {proxy} ({what}); "
            f"{way_round(url)}"
        )
    ways = ["check host, port and path in PREFECT_API_URL"]
    if parts.hostname in LOOPBACK:
        ways = ["stop it", f"choose another port, PREFECT_API_URL={next_port(url)}"]
    if parts.path != "/api":
        ways.append("end PREFECT_API_URL with /api")
    return UserError(f"what answers at {shown(url)} is no Prefect server ({what}): {', or '.join(ways)}")


def way_round(url: str) -> str:
    """Advice on how to reach the host without the proxy."""
    return f"if {urlsplit(url).hostname} is reached without it, add that to no_proxy"


def first_line(error: Exception) -> str:
    """First line of an error's message; without one, the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
