"""The API of an installation that really runs: mail arrives once, whatever is repeated, and the
examples shown on the page work as they are written."""

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.rig import House, Sink, wait_for
from webapp.sites import handin


@dataclass
class Served:
    """An installation, its key, and where its mail goes."""

    house: House
    sink: Sink
    slug: str
    key: str

    @property
    def url(self) -> str:
        return f"http://localhost:{self.house.http}"

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            f"{self.url}/api/v1{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.key}",
                "Content-Type": "application/json",
                **more,
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def wait_until_it_answers(self) -> None:
        def answers() -> bool:
            try:
                return self.ask("/messages")[0] == 200
            except OSError:
                return False

        wait_for(answers, "the dashboard")


def a_letter(number: int) -> dict[str, Any]:
    return {
        "from": "shop@example.com",
        "to": ["a@example.org"],
        "subject": f"Mail {number}",
        "text": "Hello",
        "headers": {"Message-ID": f"<api-{number}@example.com>"},
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    sink = Sink()
    sink.delay = 0.0
    house = House(folder / "instance", f"sqlite:///{folder / 'postroom.db'}")
    house.command("migrate")
    slug = house.made("site", "create", "Shop")["slug"]
    sink.connect(house, slug)
    key = house.made(
        "credential", "create", slug, "--kind", "api",
        "--scope", "send", "--scope", "read", "--scope", "manage",
    )["key"]  # fmt: skip
    made = Served(house=house, sink=sink, slug=slug, key=key)
    house.start()
    made.wait_until_it_answers()
    yield made
    house.stop()
    sink.close()


def test_repeats_arrive_once_also_across_a_restart(served: Served) -> None:
    def hand_in(number: int) -> tuple[int, Any]:
        return served.ask("/messages", a_letter(number), Idempotency_Key=f"order-{number}")

    with ThreadPoolExecutor(20) as threads:
        first = list(threads.map(hand_in, [1] * 20 + list(range(2, 6))))
    assert {status for status, _ in first} == {202}
    assert len({told["id"] for _, told in first}) == 5
    assert served.house.stop() == 0
    served.house.start()
    served.wait_until_it_answers()
    again = [hand_in(number) for number in range(1, 6)]
    assert {told["id"] for _, told in again} == {told["id"] for _, told in first}
    changed = a_letter(1) | {"text": "Other"}
    assert served.ask("/messages", changed, Idempotency_Key="order-1")[0] == 409
    wait_for(lambda: len(served.sink.arrived) >= 5, "the mails")
    wait_for(
        lambda: all(
            served.ask(f"/messages/{told['id']}")[1]["status"] == "sent" for _, told in again
        ),
        "the end",
    )
    assert set(served.sink.arrived.values()) == {1}


RUN = {
    "curl": ["sh", "-c"],
    "python": [sys.executable, "-c"],
    "php": ["php", "-r"],
    "node": ["node", "--input-type=module", "-e"],
}


@pytest.mark.parametrize("language", RUN)
def test_an_example_works_as_it_is_written(served: Served, language: str) -> None:
    command = RUN[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    recipes = handin.api_recipes(served.url, served.key, "shop@example.com", served.slug)
    text = next(one.text for one in recipes if one.slug == f"api-{language}")
    done = subprocess.run([*command, text], capture_output=True, text=True, timeout=60, check=False)
    assert "queued" in done.stdout, done.stderr or done.stdout


def test_the_way_in_for_mail_works_as_it_is_written(served: Served) -> None:
    line = handin.sendmail_path(served.slug)
    command = line.partition('"')[2].rstrip('"')
    before = served.sink.arrived.total()
    done = subprocess.run(
        ["sh", "-c", command],
        input=b"From: shop@example.com\nTo: a@example.org\nSubject: Hello\n\nIt works.\n",
        env=served.house.environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if not Path(command.split()[0]).exists():
        pytest.skip("Postroom is not installed as a command here")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: served.sink.arrived.total() > before, "the mail")
