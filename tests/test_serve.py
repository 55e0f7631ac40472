"""The supervisor and its parts, as processes: started, restarted, stopped, and gone with it."""

import os
import signal
import smtplib
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.rig import House, greets, wait_for


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "instance", "")
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()


def status_of(house: House, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{house.http}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def test_it_starts_prints_one_link_and_stops_in_good_order(house: House) -> None:
    wait_for(lambda: status_of(house, "/readyz") == 200, "readiness")
    assert status_of(house, "/healthz") == 200
    assert house.log().count("/setup?token=") == 1
    assert house.stop() == 0
    assert is_free(house.http)
    assert is_free(house.smtp)


def test_a_part_that_dies_is_started_again(house: House) -> None:
    before = {part: house.pid_of(part) for part in ("web", "submission", "deliver")}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: all(house.pid_of(part) != pid for part, pid in before.items()), "new processes"
    )
    wait_for(lambda: greets(house.smtp), "the listener")
    wait_for(lambda: status_of(house, "/readyz") == 200, "readiness")


def test_without_the_supervisor_the_parts_end_by_themselves(house: House) -> None:
    wait_for(lambda: status_of(house, "/readyz") == 200, "readiness")
    parts = [house.pid_of(part) for part in ("web", "submission", "deliver")]
    os.kill(house.pid_of("serve"), signal.SIGKILL)
    assert house.process is not None
    house.process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in parts), "the parts' end")
    wait_for(lambda: is_free(house.http) and is_free(house.smtp), "free ports")


def test_readiness_needs_a_worker_and_health_does_not(tmp_path: Path) -> None:
    """`postroom web` alone."""
    import subprocess
    import sys

    house = House(tmp_path / "instance", "")
    house.command("migrate")
    with (tmp_path / "web.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "webapp.cli", "web"],
            env=house.environment,
            cwd=Path(__file__).parents[1],
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: status_of(house, "/healthz") == 200, "the page")
        assert status_of(house, "/readyz") == 503
    finally:
        process.terminate()
        assert process.wait(45) == 0


def test_an_open_door_without_tls_is_refused(tmp_path: Path) -> None:
    house = House(tmp_path / "instance", "", commands_start_processes=True)
    house.environment_more = {"POSTROOM_SUBMISSION_LISTEN": f"0.0.0.0:{house.smtp}"}
    code, words = house.refused("serve")
    assert code == 78
    assert "without a certificate" in words


def test_a_login_survives_the_restart_of_everything(house: House) -> None:
    house.commands_start_processes = True
    slug = house.made("site", "create", "Shop")["slug"]
    login = house.made("credential", "create", slug, "--kind", "smtp")
    house.kill("serve")

    def is_let_in() -> bool:
        # What the killed one leaves behind may take a connection yet, and end with it.
        with suppress(smtplib.SMTPServerDisconnected, ConnectionError):
            with smtplib.SMTP("127.0.0.1", house.smtp) as client:
                client.login(login["username"], login["password"])
            return True
        return False

    wait_for(is_let_in, "a login")
