"""`postroom sandbox` as a process: how it starts, what it says, what outlives it."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
import requests

from tests.rig.ports import free_port
from tests.rig.sandbox import Sandbox, SandboxThread
from tests.sandbox.conftest import Client
from webapp.sandbox.commands import sandbox as command


def test_links_and_trust_outlive_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with Sandbox(tmp_path) as sandbox:
        sandbox.post("accounts", address="shop@northwind.example")
        sandbox.post("applications", client_id="own", client_secret="own-secret")
        client = Client(sandbox)  # type: ignore[arg-type]
        tokens = client.link("shop@northwind.example")
        before = Path(sandbox.ca).read_bytes()
        sandbox.restart()
        assert Path(sandbox.ca).read_bytes() == before
        assert client.refresh(tokens).ok
        found = client.graph("GET", "/me", tokens["access_token"])
        assert found.json()["mail"] == "shop@northwind.example"
        assert requests.get(sandbox.authorize_url(client_id="own"), timeout=30).ok
        client.http.close()


def test_the_folder_holds_no_key_of_the_ca_and_nothing_for_others(tmp_path: Path) -> None:
    with SandboxThread(tmp_path) as sandbox:
        assert "PRIVATE KEY" not in Path(sandbox.ca).read_text()
        kept = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("*.*")}
    assert kept == {"ca.pem": 0o600, "server.pem": 0o600, "signing-key.pem": 0o600}


def test_it_says_what_to_give_to_postroom(tmp_path: Path) -> None:
    plain, tls = free_port(), free_port()
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "webapp.cli", "sandbox", "--folder", str(tmp_path)),
            *("--listen", f"127.0.0.1:{plain}", "--tls-listen", f"127.0.0.1:{tls}"),
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(9)]
        process.terminate()
        assert process.wait(30) == 0
    assert said[1:6] == [
        f"POSTROOM_MICROSOFT_AUTHORITY=https://localhost:{tls}",
        f"POSTROOM_MICROSOFT_GRAPH=https://localhost:{tls}/graph",
        f"POSTROOM_GOOGLE_AUTHORITY=https://localhost:{tls}/google",
        f"POSTROOM_GOOGLE_GMAIL=https://localhost:{tls}/gmail",
        f"POSTROOM_CA_BUNDLE={tmp_path / 'ca.pem'}",
    ]
    assert said[8].endswith(f"http://localhost:{plain}")


@pytest.mark.parametrize("option", ["--listen", "--tls-listen"])
@pytest.mark.parametrize("address", ["0.0.0.0:9080", "[::]:9080", "192.0.2.1:9080", "host:1"])
def test_it_listens_on_this_machine_only(option: str, address: str) -> None:
    with pytest.raises(click.BadParameter, match="this machine only"):
        command.main([option, address], standalone_mode=False)


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with SandboxThread(tmp_path) as sandbox:
        options = ["--listen", sandbox.listen, "--folder", str(tmp_path / "other")]
        with pytest.raises(click.ClickException, match="cannot listen"):
            command.main(options, standalone_mode=False)
