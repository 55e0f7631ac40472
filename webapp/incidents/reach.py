"""Calls out to addresses that people typed: signed, and never into a private network unasked.

A name is looked up once, right before the connection; what was looked up is checked, and the same
address is connected to. So no name can lead elsewhere between the check and the call.
"""

import hashlib
import hmac
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from webapp.outward import Outward

TIME_LIMIT = (10.0, 10.0)
"""Seconds to connect, and to wait for the next byte of an answer."""
WHOLE_LIMIT = 25.0
"""Seconds for all of it: an answer may also come one byte at a time."""

HEADER = "X-Postroom-Signature"
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv4 addresses as some networks write them (RFC 6052)."""

Resolver = Callable[..., Iterable[tuple[Any, ...]]]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Unreached(Exception):
    """The call was not made, or was not taken; `code` says why, in our own or in one word."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What a target may be: an instance admin may name one in a private network."""

    ca_file: str | None = None
    private: bool = False
    resolver: Resolver = socket.getaddrinfo


def signature(key: str, body: bytes, at: datetime) -> str:
    """The value of the header that proves where a call comes from, and when it was made."""
    stamp = str(int(at.timestamp()))
    digest = hmac.new(key.encode(), stamp.encode() + b"." + body, hashlib.sha256)
    return f"t={stamp},v1={digest.hexdigest()}"


def check_url(url: str, *, private: bool) -> str:
    """A word for what is wrong with an address as it stands, without asking the network; or ""."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        return "no-address"
    if not host or parts.username is not None or any(c <= " " or c == "\\" for c in url):
        return "no-address"
    if parts.scheme == "http":
        return "" if private and _is_loopback_name(host) else "not-https"
    return "" if parts.scheme == "https" else "not-https"


def post(url: str, body: bytes, headers: Mapping[str, str], trust: Trust) -> int:
    """Send JSON to an address; returns the status, one of 2xx. Raises Unreached."""
    problem = check_url(url, private=trust.private)
    if problem:
        raise Unreached(problem)
    found: list[int | Unreached] = []

    def call() -> None:
        try:
            found.append(_post(url, body, headers, trust))
        except Unreached as error:
            found.append(error)

    # On a thread of its own: no time limit of the library ends an answer that only trickles.
    thread = threading.Thread(target=call, name="webhook", daemon=True)
    thread.start()
    thread.join(WHOLE_LIMIT)
    if not found:
        raise Unreached("timeout")
    if isinstance(found[0], Unreached):
        raise found[0]
    return found[0]


def _post(url: str, body: bytes, headers: Mapping[str, str], trust: Trust) -> int:
    with Outward(ca_file=trust.ca_file, time_limit=TIME_LIMIT) as session:
        session.mount("https://", Guarded(trust))
        session.mount("http://", Guarded(trust))
        given = {
            "Content-Type": "application/json",
            **headers,
        }
        try:
            answer = session.post(url, data=body, headers=given, allow_redirects=False, stream=True)
        except requests.RequestException as error:
            raise Unreached(_why(error)) from error
        with answer:  # what it says is not read: nobody needs it
            status = answer.status_code
    if 300 <= status < 400:
        raise Unreached(f"redirect {status}")
    if not 200 <= status < 300:
        raise Unreached(f"status {status}")
    return status


class Guarded(HTTPAdapter):
    """Looks the host up, refuses what leads inside, and connects to just that address."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        super().__init__(max_retries=0)

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> Any:
        """The library's, with the address in place of the name; the certificate is of the name."""
        pool: dict[str, Any]
        where, pool = super().build_connection_pool_key_attributes(request, verify, cert)  # type: ignore[assignment]
        request.headers["Host"] = urlsplit(str(request.url)).netloc
        host = str(where["host"] or "").strip("[]")
        address = look_up(host, self._trust, plain=where["scheme"] == "http")
        where["host"] = address
        if where["scheme"] == "https":
            pool["server_hostname"] = pool["assert_hostname"] = host
        return where, pool


def look_up(host: str, trust: Trust, *, plain: bool) -> str:
    """The address to connect to; raises Unreached. `plain` is allowed on this machine only."""
    try:
        name = host.encode("idna").decode() if not host.isascii() else host
        found = [str(answer[4][0]) for answer in trust.resolver(name, None, 0, socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise Unreached("unknown-host") from error
    if not found:
        raise Unreached("unknown-host")
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    if not trust.private and any(is_inside(address) for address in addresses):
        raise Unreached("private-address")
    if plain and not all(address.is_loopback for address in addresses):
        raise Unreached("not-https")
    return str(addresses[0])


def is_inside(address: Address) -> bool:
    """Whether it leads into a private network, to this machine, or to nowhere."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_inside(inner)
        if address.teredo is not None or address.is_site_local:
            return True
    return not address.is_global or address.is_multicast or address.is_reserved


def _is_loopback_name(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _why(error: requests.RequestException) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return "certificate"
    if isinstance(error, requests.exceptions.ProxyError):
        return "proxy"
    if isinstance(error, requests.exceptions.Timeout):
        return "timeout"
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema):
        return "no-address"
    return "no-connection"
