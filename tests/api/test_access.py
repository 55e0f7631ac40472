"""Who may use the API: keys, scopes, senders, networks, limits; and what an error looks like."""

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.api.conftest import Desk, Program, a_letter
from tests.api.test_send import MIME, RAW, faults
from webapp.api.pace import Pace
from webapp.disk import Disk
from webapp.sites.models import Credential


def credential_of(desk: Desk, program: Program) -> Credential:
    username = program.key.partition(".")[0]
    with desk.installation.db.read() as session:
        return session.scalars(sa.select(Credential).where(Credential.username == username)).one()


def test_without_a_key_nothing_is_told(desk: Desk) -> None:
    answer = Program(desk.app, "").get("/messages")
    faults(answer, 401, "no-key")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "key", ["x", "pk_unknown.secret", ".", "pk_\x7f.x", "a" * 5000, "pk.\u00fc"]
)
def test_a_wrong_key_is_refused(light_desk: Desk, key: str) -> None:
    answer = Program(light_desk.app, key).get("/messages")
    faults(answer, 401, "no-key")
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_the_right_name_with_a_wrong_secret_is_refused(desk: Desk, program: Program) -> None:
    name = program.key.partition(".")[0]
    faults(Program(desk.app, f"{name}.{'0' * 32}").get("/messages"), 401, "no-key")
    assert program.get("/messages").status_code == 200


def test_an_smtp_login_is_no_key(light_desk: Desk) -> None:
    from tests.factories import a_credential

    with light_desk.installation.db.write() as session:
        login, secret = a_credential(session, light_desk.site)
    faults(Program(light_desk.app, f"{login.username}.{secret}").get("/messages"), 401, "no-key")


def test_a_revoked_key_is_refused_at_once(desk: Desk, program: Program) -> None:
    assert program.get("/messages").status_code == 200
    with desk.installation.db.write() as session:
        session.execute(sa.update(Credential).values(revoked_at=desk.installation.db.now()))
    faults(program.get("/messages"), 401, "no-key")


def test_wrong_keys_take_longer_each_time_and_right_ones_do_not(light_desk: Desk) -> None:
    waits: list[float] = []
    light_desk.app.extensions["postroom.api"].sleep = waits.append
    wrong, right = Program(light_desk.app, "pk_unknown.secret"), light_desk.program()
    for _ in range(3):
        wrong.get("/messages")
    assert waits == [0.5, 1.0, 2.0]
    assert right.get("/messages").status_code == 200
    assert len(waits) == 3


def test_wrong_keys_never_hold_the_whole_dashboard(light_desk: Desk) -> None:
    office = light_desk.app.extensions["postroom.api"]
    taken = [office.sleepers.acquire(blocking=False) for _ in range(10)]
    assert taken.count(True) == 2
    answer = Program(light_desk.app, "pk_unknown.secret").get("/messages")
    faults(answer, 429, "too-many")
    assert answer.headers["Retry-After"] == "1"
    for _ in range(2):
        office.sleepers.release()


def test_a_key_counts_from_its_networks_only(desk: Desk) -> None:
    here = desk.program(networks=["127.0.0.0/8"])
    elsewhere = desk.program(networks=["203.0.113.0/24"])
    assert here.get("/messages").status_code == 200
    faults(elsewhere.get("/messages"), 401, "no-key")


@pytest.mark.parametrize("scope", ["send", "read", "manage"])
def test_a_missing_scope_is_named(light_desk: Desk, scope: str) -> None:
    others = {"send", "read", "manage"} - {scope}
    program = light_desk.program(*others)
    answers = {
        "send": program.post("/messages", a_letter()),
        "read": program.get("/messages"),
        "manage": program.post("/messages/AAAA/cancel"),
    }
    faults(answers[scope], 403, "scope")
    assert f'scope="{scope}"' in answers[scope].headers["WWW-Authenticate"]
    assert all(answers[other].status_code != 403 for other in others)


def test_a_key_sends_as_its_senders_only(desk: Desk) -> None:
    program = desk.program(senders=["*@lindenhof.example"])
    assert program.send()
    answer = program.post("/messages", a_letter(**{"from": "boss@bank.example"}))
    assert [where for where, _ in faults(answer, 403, "sender")] == ["/from"]
    raw = RAW.replace(b"shop@lindenhof.example", b"boss@bank.example")
    for data, more in (
        (raw, {}),
        (raw, {"X-Postroom-Mail-From": "shop@lindenhof.example"}),
        (RAW, {"X-Postroom-Mail-From": "boss@bank.example"}),
    ):
        faults(program.post("/messages", data=data, headers=MIME | more), 403, "sender")


def test_a_key_resends_as_its_senders_only(desk: Desk, program: Program) -> None:
    queue_id = program.send()
    limited = desk.program(senders=["boss@bank.example"])
    faults(limited.post(f"/messages/{queue_id}/resend"), 403, "sender")


def test_the_last_use_is_noted_once_a_minute(desk: Desk, program: Program) -> None:
    program.get("/messages")
    first = credential_of(desk, program)
    program.get("/messages")
    assert credential_of(desk, program).last_used_at == first.last_used_at
    assert first.last_used_at is not None
    assert first.last_used_from == "127.0.0.1"


def test_every_answer_says_how_many_requests_are_left(light_desk: Desk) -> None:
    office = light_desk.app.extensions["postroom.api"]
    office.pace = Pace(2)
    program = light_desk.program("read")
    first = program.get("/messages")
    assert [first.headers[f"RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset")] == [
        "2", "1", "30",
    ]  # fmt: skip
    program.post("/messages", a_letter())  # refused for its scope, and counted
    third = program.get("/messages")
    faults(third, 429, "too-many")
    assert third.headers["RateLimit-Remaining"] == "0"
    assert 1 <= int(third.headers["Retry-After"]) <= 30
    assert light_desk.program().get("/messages").status_code == 200


def test_a_bucket_fills_evenly() -> None:
    pace = Pace(60)
    assert all(pace.take(1, 0.0).is_granted for _ in range(60))
    assert not pace.take(1, 0.5).is_granted
    assert pace.take(1, 1.6).is_granted
    assert pace.take(2, 0.0).is_granted
    late = pace.take(1, 10_000.0)
    assert (late.remaining, late.reset, late.wait) == (59, 1, 0)


@pytest.mark.parametrize("path", ["/nothing", "/messages/AAAA", "/messages/%00", "/messages/ü"])
def test_what_is_not_there_is_a_problem(light_desk: Desk, path: str) -> None:
    faults(light_desk.program().get(path), 404, "not-found")


def test_a_wrong_method_is_a_problem(light_desk: Desk) -> None:
    answer = light_desk.program().ask("DELETE", "/messages")
    faults(answer, 405, "method")
    assert "POST" in answer.headers["Allow"]


def test_a_mistake_of_ours_is_a_problem(light_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("hunter2")

    light_desk.app.testing = False
    monkeypatch.setattr("webapp.maillog.service.list_messages", fail)
    answer = light_desk.program().get("/messages")
    faults(answer, 500, "bug")
    assert answer.json["error_id"]
    assert "hunter2" not in answer.text


def test_a_database_that_is_away_is_no_mistake_of_ours(
    light_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise sa.exc.OperationalError("SELECT 1", None, ValueError("gone"))

    monkeypatch.setattr("webapp.maillog.service.list_messages", fail)
    answer = light_desk.program().get("/messages")
    faults(answer, 503, "busy")
    assert answer.headers["Retry-After"] == "5"


def test_the_api_answers_under_any_name_of_this_machine(light_desk: Desk) -> None:
    answer = light_desk.program().get("/messages", base_url="http://127.0.0.1:8025")
    assert answer.status_code == 200


def test_the_first_look_at_the_disk_holds_nobody_up() -> None:
    """A second thread asks while the first one still looks."""
    looking, go_on = threading.Event(), threading.Event()
    asked: list[bool] = []

    def free(_: Path) -> int:
        if not looking.is_set():
            looking.set()
            go_on.wait(10)
        return 1_000_000

    disk = Disk([Path("/")], 0, free=free)
    first = threading.Thread(target=lambda: asked.append(disk.has_room(10)))
    first.start()
    looking.wait(10)
    asked.append(disk.has_room(10))
    go_on.set()
    first.join()
    assert asked == [True, True]
