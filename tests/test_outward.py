"""The HTTP session for every call out: what it trusts, what it takes from the environment."""

import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests
import trustme

from webapp.outward import TIME_LIMIT, USER_AGENT, Outward


@dataclass
class Service:
    """A service on loopback with a certificate of its own, or without one."""

    url: str
    ca: Path
    seen: list[dict[str, str]] = field(default_factory=list)


def serve(folder: Path, *, tls: bool) -> Iterator[Service]:
    authority = trustme.CA()
    ca = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    found = Service(url="", ca=ca)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.seen.append(
                {"path": self.path, **{k.lower(): v for k, v in self.headers.items()}}
            )
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    found.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Service]:
    yield from serve(tmp_path, tls=True)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Service]:
    yield from serve(tmp_path, tls=False)


def test_our_own_certificates_count_whatever_the_environment_names(
    secure: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(other))
    with Outward(ca_file=str(secure.ca)) as session:
        assert session.get(secure.url).text == "ok"
    with Outward(ca_file=str(other)) as session, pytest.raises(requests.exceptions.SSLError):
        session.get(secure.url)


def test_a_password_file_of_the_user_is_not_read(
    plain: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password geheim\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with Outward() as session:
        session.get(plain.url, headers={"Authorization": "Bearer ours"})
    assert plain.seen[0]["authorization"] == "Bearer ours"
    assert plain.seen[0]["user-agent"] == USER_AGENT


def test_a_proxy_of_the_environment_is_used_and_its_exceptions_hold(
    plain: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", plain.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Outward() as session:
        session.get("http://graph.example/v1.0/me")
    assert plain.seen[0]["path"] == "http://graph.example/v1.0/me"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Outward() as session:
        session.get(f"{plain.url}/direct")
    assert plain.seen[1]["path"] == "/direct"


def test_nothing_is_waited_for_without_an_end() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Outward(time_limit=(1, 0.1)) as session,
        pytest.raises(requests.exceptions.ReadTimeout),
    ):
        session.get(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert None not in TIME_LIMIT
