"""The address of Prefect's API, and the proxies on the way to it."""

import os
from collections.abc import MutableMapping
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from fewstep.config.base import CREDENTIALS
from fewstep.core.errors import UserError

EXAMPLE = "http://127.0.0.1:4200/api"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def api_address(text: str) -> str:
    """PREFECT_API_URL, checked and without a final slash. Raises UserError with what is wrong with it."""
    url = text.strip()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UserError(f"PREFECT_API_URL={shown(url)}: {error}; expected one like {EXAMPLE}") from None
    if not url:
        raise UserError(f"PREFECT_API_URL is not set; expected one like {EXAMPLE}")
    if parts.scheme not in ("http", "https"):
        wrong = "does not begin with http:// or https://"
    elif not parts.hostname:
        wrong = "names no host"
    elif port == 0:
        wrong = "names port 0"
    elif parts.query or parts.fragment:
        wrong = "ends with a query"
    elif not parts.path.strip("/"):
        wrong = "lacks the path of the API"
    else:
        return url.rstrip("/")
    raise UserError(f"PREFECT_API_URL={shown(url)}: {wrong}; expected one like {EXAMPLE}")


def shown(url: str) -> str:
    """The address without its user name and password, for messages."""
    return CREDENTIALS.sub("...", url)


def next_port(url: str) -> str:
    """The address with another port, as an example in messages."""
    parts = urlsplit(url)
    port = parts.port or 4200
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{port + 1 if 1024 <= port < 65535 else 4201}{parts.path}"


def avoid_proxies_on_loopback(environment: MutableMapping[str, str] = os.environ) -> None:
    """Exempt the loopback addresses from proxies, for HTTP clients of this process and of its children.

    Otherwise clients use the proxy for the loopback too. `no_proxy` is read first, then `NO_PROXY`.
    """
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in LOOPBACK if host not in hosts]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(hosts)


def proxy_of(url: str) -> str | None:
    """Variable and proxy for requests to `url`, e.g. "http_proxy=http://host:3128"; None without a proxy."""
    parts = urlsplit(url)
    if proxy_bypass_environment(parts.hostname or ""):
        return None
    known = getproxies_environment()
    for scheme in (parts.scheme, "all"):
        if known.get(scheme):
            name = f"{scheme}_proxy"
            return f"{name if os.environ.get(name) else name.upper()}={shown(known[scheme])}"
    return None


def proxies() -> str:
    """Names of the environment variables that set proxies, for messages."""
    return ", ".join(sorted(f"{scheme}_proxy" for scheme in getproxies_environment() if scheme != "no"))
