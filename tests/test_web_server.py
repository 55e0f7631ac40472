"""The web process as it really runs."""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAM = """
from webapp.installation import open_installation
from webapp.web_server import run_web
run_web(open_installation(migrate=True))
"""


def ask(port: int, path: str, headers: dict[str, str]) -> http.client.HTTPResponse | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        response.read()
    except OSError:
        return None
    finally:
        connection.close()
    return response


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    environment = os.environ | {
        "POSTROOM_INSTANCE": str(tmp_path / "instance"),
        "POSTROOM_HTTP_LISTEN": f"127.0.0.1:{port}",
        "HOME": str(tmp_path),
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM],
            env=environment,
            cwd=Path(__file__).parents[1],
            stdout=output,
            stderr=output,
        )
    try:
        until = time.monotonic() + 30
        while ask(port, "/healthz", {}) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        local = {"Host": f"localhost:{port}"}
        page = ask(port, "/setup?token=a-secret-token", local)
        assert page is not None
        assert page.status == 200
        choice = ask(port, "/language?to=zh_Hans", {**local, "X-Forwarded-Proto": "https"})
        assert choice is not None
        assert "Secure" not in choice.headers["Set-Cookie"], "nobody vouches for that header"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    assert "a-secret-token" not in log.read_text()
    assert not (tmp_path / ".gunicorn").exists()
