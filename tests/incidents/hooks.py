"""A receiver of webhooks on loopback, and an independent reading of its signature."""

import hashlib
import hmac
import json
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Call:
    """What came in."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


def is_genuine(call: Call, key: str) -> bool:
    """As docs/alerts.md tells people to do it."""
    given = dict(part.split("=", 1) for part in call.headers["X-Postroom-Signature"].split(","))
    wanted = hmac.new(key.encode(), f"{given['t']}.".encode() + call.body, hashlib.sha256)
    return hmac.compare_digest(wanted.hexdigest(), given["v1"])


class Hook:
    """Answers 204 until told otherwise; `answers` are the next ones, `where` a redirect's."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.calls: list[Call] = []
        self.answers: list[int] = []
        self.where = ""
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.calls.append(Call(path=self.path, headers=dict(self.headers), body=body))
                self.send_response(hook.answers.pop(0) if hook.answers else 204)
                if hook.where:
                    self.send_header("Location", hook.where)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=lambda: self._server.serve_forever(poll_interval=0.02), daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "Hook":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
