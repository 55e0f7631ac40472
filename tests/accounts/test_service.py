"""Accounts, sessions and the brakes on guessing, on both databases."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.factories import PASSWORD, a_time, a_user, an_installation
from webapp.accounts import service
from webapp.accounts.models import Throttle, User, UserSession
from webapp.audit import AuditEvent
from webapp.installation import Installation

NOW = a_time()


@pytest.fixture
def both(db_url: str, tmp_path: Path) -> Iterator[Installation]:
    """An installation on each kind of database."""
    made = an_installation(db_url, tmp_path)
    yield made
    made.close()


def create(installation: Installation, **values: object) -> User:
    given = {
        "email": "mara@agentur.example",
        "name": "Mara",
        "password": PASSWORD,
        "is_admin": True,
        "language": None,
        "now": NOW,
    }
    with installation.db.write() as session:
        return service.create_user(session, **(given | values))  # type: ignore[arg-type]


# ---- accounts ----


def test_an_account_is_found_however_its_address_is_written(both: Installation) -> None:
    made = create(both, email="  Mara@Agentur.example ")
    with both.db.read() as session:
        found = service.find_user(session, "MARA@agentur.EXAMPLE")
        event = session.scalars(sa.select(AuditEvent)).one()
    assert found is not None
    assert found.id == made.id
    assert service.check_password(found, PASSWORD)
    assert not service.check_password(found, PASSWORD + "x")
    assert (event.action, event.actor) == ("user created", "command line")


def test_an_address_belongs_to_one_account(both: Installation) -> None:
    create(both)
    with pytest.raises(service.EmailTaken):
        create(both, email="MARA@agentur.example")


@pytest.mark.parametrize(
    "email", ["", "mara", "@x.example", "mara@", "a b@x.example", "m@" + "x" * 320]
)
def test_an_account_needs_an_address(installation: Installation, email: str) -> None:
    with pytest.raises(service.EmailInvalid):
        create(installation, email=email)


def test_a_password_is_neither_short_nor_endless(installation: Installation) -> None:
    with pytest.raises(service.PasswordTooShort):
        create(installation, password="x" * 11)
    with pytest.raises(service.PasswordTooLong):
        create(installation, password="x" * 1001)
    create(installation, password="x" * 12)


def test_an_old_hash_is_renewed() -> None:
    made = User(password_hash=service.hasher.hash(PASSWORD))
    assert service.rehash(made, PASSWORD) is None
    made.password_hash = "$argon2i$v=19$m=8,t=1,p=1$" + made.password_hash.split("$", 4)[4]
    assert service.rehash(made, PASSWORD)


# ---- sessions ----


def test_a_session_is_found_by_its_secret_until_it_ends(both: Installation) -> None:
    user = create(both)
    with both.db.write() as session:
        secret = service.open_session(session, user.id, now=NOW, address="192.0.2.1")
    with both.db.read() as session:
        found = service.find_session(session, secret, NOW + timedelta(days=29))
        assert found is not None
        assert found.user.id == user.id
        assert service.find_session(session, secret, NOW + timedelta(days=30)) is None
        assert service.find_session(session, found.session.digest, NOW) is None


def test_being_seen_prolongs_a_session(both: Installation) -> None:
    user = create(both)
    later = NOW + timedelta(days=20)
    with both.db.write() as session:
        secret = service.open_session(session, user.id, now=NOW)
        (made,) = service.sessions_of(session, user.id, NOW)
        service.note_seen(session, made.id, later)
    with both.db.read() as session:
        assert service.find_session(session, secret, NOW + timedelta(days=40)) is not None


def test_a_new_password_ends_the_other_sessions_of_that_person_only(both: Installation) -> None:
    user, other = create(both), create(both, email="ben@agentur.example")
    with both.db.write() as session:
        for who in (user, user, user, other):
            service.open_session(session, who.id, now=NOW)
        keep = service.sessions_of(session, user.id, NOW)[0].id
        fresh = service.hash_password("another long password")
        ended = service.set_password(session, user.id, fresh, now=NOW, actor=user.email, keep=keep)
    with both.db.read() as session:
        assert ended == 2
        assert [row.id for row in service.sessions_of(session, user.id, NOW)] == [keep]
        assert len(service.sessions_of(session, other.id, NOW)) == 1


def test_what_is_over_is_forgotten(both: Installation) -> None:
    user = create(both)
    with both.db.write() as session:
        service.open_session(session, user.id, now=NOW - timedelta(days=31))
        service.open_session(session, user.id, now=NOW)
        service.note_failure(session, ["login:old"], NOW - timedelta(days=2))
        service.note_failure(session, ["login:new"], NOW)
        service.forget_what_is_over(session, NOW)
    with both.db.read() as session:
        assert len(session.scalars(sa.select(UserSession)).all()) == 1
        assert session.scalars(sa.select(Throttle.key)).all() == ["login:new"]


# ---- the brakes on guessing ----


def test_the_delay_begins_late_grows_and_ends_at_five_minutes() -> None:
    seconds = [
        service.delay_after("login", n).total_seconds() for n in (1, 2, 3, 4, 5, 6, 11, 12, 99)
    ]
    assert seconds == [0, 0, 1, 2, 4, 8, 256, 300, 300]
    assert service.delay_after("address", 9) == timedelta()
    assert service.delay_after("address", 10) == timedelta(seconds=1)


KEYS = service.throttle_keys(" Mara@agentur.example", "192.0.2.1")


def fail(installation: Installation, times: int, keys: tuple[str, ...] = KEYS) -> None:
    for _number in range(times):
        with installation.db.write() as session:
            service.note_failure(session, keys, NOW)


def delay(installation: Installation, after: timedelta, keys: tuple[str, ...] = KEYS) -> float:
    with installation.db.read() as session:
        return service.delay_for(session, keys, NOW + after).total_seconds()


def test_waiting_is_over_by_itself(both: Installation) -> None:
    fail(both, 5)
    assert delay(both, timedelta()) == 4
    assert delay(both, timedelta(seconds=3)) == 1
    assert delay(both, timedelta(seconds=4)) == 0
    assert delay(both, timedelta(days=2)) == 0


def test_one_address_that_tries_many_logins_has_to_wait(both: Installation) -> None:
    for number in range(11):
        fail(both, 1, service.throttle_keys(f"login{number}", "192.0.2.1"))
    assert delay(both, timedelta(), service.throttle_keys("fresh", "192.0.2.1")) == 2
    assert delay(both, timedelta(), service.throttle_keys("fresh", "192.0.2.2")) == 0


def test_after_a_success_there_is_no_waiting(both: Installation) -> None:
    fail(both, 8)
    with both.db.write() as session:
        service.clear(session, KEYS)
    assert delay(both, timedelta()) == 0


def test_failures_of_long_ago_do_not_count(both: Installation) -> None:
    with both.db.write() as session:
        for _number in range(9):
            service.note_failure(session, KEYS, NOW - timedelta(days=2))
    fail(both, 1)
    assert delay(both, timedelta()) == 0


def test_failures_at_the_same_moment_are_all_counted(both: Installation) -> None:
    threads = [threading.Thread(target=fail, args=(both, 5)) for _number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with both.db.read() as session:
        assert session.scalars(sa.select(Throttle.failures)).all() == [20, 20]


def test_an_ipv6_neighbourhood_counts_as_one_address() -> None:
    one, other = (service.throttle_keys("x", f"2001:db8:1:2::{n}")[1] for n in (1, 2))
    assert one == other != service.throttle_keys("x", "2001:db8:1:3::1")[1]
    assert service.throttle_keys("x", "::ffff:192.0.2.1")[1] == "address:192.0.2.1"


def test_nobody_is_not_somebody() -> None:
    assert not service.check_password(None, PASSWORD)


def test_a_user_from_the_factory_has_the_usual_password(installation: Installation) -> None:
    with installation.db.write() as session:
        assert service.check_password(a_user(session), PASSWORD)
