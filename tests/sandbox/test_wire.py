"""The small HTTP server, byte by byte."""

import socket
from urllib.parse import urlsplit

import pytest

from tests.rig.sandbox import SandboxThread


def talk(sandbox: SandboxThread, *pieces: bytes) -> bytes:
    """Send pieces one by one; all that comes back until the server closes."""
    port = urlsplit(sandbox.inbox).port
    with socket.create_connection(("127.0.0.1", port or 0), timeout=30) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            link.sendall(piece)
        answer = b""
        while received := link.recv(65536):
            answer += received
        return answer


HOST = b"Host: localhost\r\n"
LAST = b"GET /control/calls HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


def test_requests_in_one_piece_are_answered_in_turn(sandbox: SandboxThread) -> None:
    answer = talk(sandbox, b"GET /nothing HTTP/1.1\r\n" + HOST + b"\r\n" + LAST)
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.count(b"HTTP/1.1 200 OK") == 1


def test_a_request_in_many_pieces_is_put_together(sandbox: SandboxThread) -> None:
    body = b'{"on": false}'
    head = (
        b"POST /control/discard HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: 13\r\n\r\n"
    )
    pieces = [bytes([byte]) for byte in head + body]
    assert talk(sandbox, *pieces).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_asks_first_is_told_to_go_on(sandbox: SandboxThread) -> None:
    head = (
        b"POST /control/discard HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
        b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    answer = talk(sandbox, head, b"{}")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", 505),
        (b"nonsense\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, 431),
    ],
)
def test_what_is_not_http_is_refused(sandbox: SandboxThread, request_: bytes, status: int) -> None:
    assert talk(sandbox, request_).startswith(f"HTTP/1.1 {status} ".encode())
