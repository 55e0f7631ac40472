"""The stand-in for Microsoft, for tests: as a process, or in threads of this one.

    @pytest.fixture(scope="module")
    def sandbox() -> Iterator[Sandbox]:
        with SandboxThread() as running:
            yield running

    def test_a_busy_graph_is_asked_again(sandbox: Sandbox) -> None:
        sandbox.fault("unavailable", times=1, retry_after=2)
        ...
        assert sandbox.mails()[0]["recipients"] == ["bob@example.org"]

`Sandbox` is what people start by `postroom sandbox`: use it where a restart, another process or
speed matters. `SandboxThread` is ready sooner and has the same interface.
"""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import requests

from tests.rig.ports import free_port
from webapp.config import Listen
from webapp.sandbox import server
from webapp.sandbox.folder import Folder

_START_LIMIT = 60


@cache
def _keys() -> dict[str, bytes]:
    """Keys and certificates of a sandbox, by the names of their files. To make them takes as long
    as all else of a start."""
    with tempfile.TemporaryDirectory(prefix="postroom-sandbox-") as name:
        folder = Folder(Path(name))
        folder.tls()
        folder.signing_key()
        return {file.name: file.read_bytes() for file in folder.path.iterdir()}


def _put_keys(folder: Path) -> None:
    for name, content in _keys().items():
        (folder / name).write_bytes(content)


class Running(ABC):
    """The interface of both."""

    def __init__(self, folder: Path | None, *, lasts: int) -> None:
        self._own = None if folder else tempfile.TemporaryDirectory(prefix="postroom-sandbox-")
        self.folder = folder or Path(self._own.name if self._own else "")
        if folder is None:
            _put_keys(self.folder)
        self.listen, self.tls_listen = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.lasts = lasts
        self._control = requests.Session()
        self._control.trust_env = False
        self.described: dict[str, Any] = {}
        self.start()

    @abstractmethod
    def start(self) -> None:
        """Returns when it answers."""

    @abstractmethod
    def stop(self) -> None:
        """Returns when its ports are free."""

    def restart(self) -> None:
        """Stop and start on the same ports with the same folder."""
        self.stop()
        self.start()

    def close(self) -> None:
        self._control.close()
        self.stop()
        if self._own:
            self._own.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- where it is ----

    @property
    def inbox(self) -> str:
        return str(self.described["inbox"])

    @property
    def authority(self) -> str:
        return str(self.described["authority"])

    @property
    def graph(self) -> str:
        return str(self.described["graph"])

    @property
    def ca(self) -> str:
        return str(self.described["ca"])

    @property
    def client_id(self) -> str:
        return str(self.described["client_id"])

    @property
    def client_secret(self) -> str:
        return str(self.described["client_secret"])

    @property
    def single_tenant(self) -> dict[str, str]:
        """`client_id`, `client_secret`, `tenant` of the registration of one tenant."""
        return dict(self.described["single_tenant"])

    @property
    def google(self) -> dict[str, Any]:
        """`authority`, `gmail`, `client_id`, `client_secret`, `accounts`."""
        return dict(self.described["google"])

    @property
    def environment(self) -> dict[str, str]:
        """What makes an installation use this sandbox."""
        return {
            "POSTROOM_MICROSOFT_AUTHORITY": self.authority,
            "POSTROOM_MICROSOFT_GRAPH": self.graph,
            "POSTROOM_GOOGLE_AUTHORITY": self.google["authority"],
            "POSTROOM_GOOGLE_GMAIL": self.google["gmail"],
            "POSTROOM_CA_BUNDLE": self.ca,
        }

    def session(self) -> requests.Session:
        """An HTTP session that trusts the sandbox and nothing else."""
        made = requests.Session()
        made.trust_env = False
        made.verify = self.ca
        return made

    # ---- what it is told, and what it saw ----

    def fault(self, kind: str, **options: object) -> None:
        """Plan a fault: `account`, `client_id`, `times`, `retry_after`, `milliseconds`."""
        self.post("faults", kind=kind, **options)

    def clear(self) -> None:
        """No more faults."""
        self._call("DELETE", "faults")

    def reset(self) -> None:
        """No mails, faults, consents, counters; links stay good."""
        self.post("reset")

    def revoke(self, account: str) -> None:
        """End the sessions of an account."""
        self.post("revoke", account=account)

    def discard(self, on: bool = True) -> None:
        """Count mails and keep nothing of them."""
        self.post("discard", on=on)

    def mails(self) -> list[dict[str, Any]]:
        """What arrived, newest first."""
        return list(self._call("GET", "mails"))

    def raw(self, number: int) -> str:
        """The source of one mail of `mails`."""
        return str(self._call("GET", f"mails/{number}")["raw"])

    def counts(self) -> dict[str, int]:
        """How often each Message-ID arrived."""
        return dict(self._call("GET", "mails/counts"))

    def calls(self) -> dict[str, Any]:
        """`token` and `graph`: lists of calls with `times`."""
        return dict(self._call("GET", "calls"))

    def token_calls(self, grant_type: str = "") -> int:
        """How often the token endpoint was asked, successfully or not."""
        return sum(
            call["times"]
            for call in self.calls()["token"]
            if grant_type in ("", call["grant_type"])
        )

    def post(self, name: str, **given: object) -> Any:
        """A call of the control API."""
        return self._call("POST", name, given)

    def _call(self, method: str, name: str, given: object = None) -> Any:
        answer = self._control.request(
            method, f"{self.inbox}/control/{name}", json=given, timeout=30
        )
        assert answer.ok, answer.text
        return answer.json()

    def sign_in(self, url: str, account: str, *, decision: str = "accept") -> str:
        """Go through the pages behind an authorize address; the address they send back to."""
        form = {"account": account, "decision": decision}
        answer = self._control.post(url, data=form, allow_redirects=False, timeout=30)
        assert answer.status_code == 302, re.sub(r"<[^>]+>|\s+", " ", answer.text)
        return answer.headers["Location"]

    def authorize_url(self, segment: str = "common", **given: str) -> str:
        """An authorize address by hand, for tests of the pages."""
        values = {
            "client_id": self.client_id,
            "response_type": "code",
            "redirect_uri": "http://localhost:8025/oauth/microsoft/callback",
            "scope": f"openid profile email offline_access {self.graph}/Mail.Send"
            f" {self.graph}/User.Read",
            "state": "abc",
            **given,
        }
        return f"{self.inbox}/{segment}/oauth2/v2.0/authorize?{urlencode(values)}"


class Sandbox(Running):
    """`postroom sandbox` as a process of its own."""

    def __init__(self, folder: Path | None = None, *, lasts: int = 3600) -> None:
        super().__init__(folder, lasts=lasts)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "webapp.cli", "sandbox", "--json"),
                *("--listen", self.listen, "--tls-listen", self.tls_listen),
                *("--folder", str(self.folder), "--token-lasts", str(self.lasts)),
            ],
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if "POSTROOM" not in name},
            cwd=Path(__file__).parents[2],
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the sandbox ended with {self.process.wait()}"
        self.described = json.loads(line)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class SandboxThread(Running):
    """The same servers on a thread of this process."""

    def __init__(self, folder: Path | None = None, *, lasts: int = 3600) -> None:
        super().__init__(folder, lasts=lasts)

    def start(self) -> None:
        options = server.Options(
            listen=Listen(self.listen),
            tls_listen=Listen(self.tls_listen),
            folder=self.folder,
            lasts=self.lasts,
        )
        self.world = server.build(options)
        self.described = server.describe(self.world)
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(options, ready), daemon=True)
        self._thread.start()
        assert ready.wait(_START_LIMIT)

    def _run(self, options: server.Options, ready: threading.Event) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            await server.serve(self.world, options, ready=ready.set, until=self._stop)

        with contextlib.closing(asyncio.new_event_loop()) as loop:
            loop.run_until_complete(run())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
