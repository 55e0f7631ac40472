"""Mail that comes in under rules and modes, on both databases."""

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from tests.routing.rules import a_rule, another_connection, change_site
from tests.routing.test_conditions import one
from tests.world import World, a_mail
from webapp.delivery.models import Recipient, Source, State
from webapp.ingress.accept import Accepted, Once, Pinned, Submission, prepare, store
from webapp.routing.book import Rulebook
from webapp.sites.models import Credential, CredentialKind, Mode

ORDERS = one("subject", "contains", "order")


def hand_in(
    world: World, site: int, *recipients: str, book: Rulebook | None = None, **values: Any
) -> Accepted:
    given: dict[str, Any] = {
        "site_id": site,
        "credential_id": None,
        "source": Source.SMTP,
        "mail_from": "a@b.example",
        "recipients": recipients or ("kunde@example.org",),
        "raw": a_mail(),
        "received": {},
    }
    prepared = prepare(Submission(**(given | values)))
    with world.db.write_driver() as driver:
        return store(driver, [prepared], world.now, book)[0]


def test_a_mail_is_routed_by_the_rules_of_its_site_and_waits_on_that_lane(world: World) -> None:
    site, other = world.a_site(), world.a_site()
    primary = world.a_connection(site, other)
    second = another_connection(world, site)
    uid = a_rule(world, site, ORDERS, connection=second, name="Orders")
    book = Rulebook()
    row = world.message(hand_in(world, site, book=book).queue_id)
    assert (row.connection_id, row.planned_id) == (second, second)
    assert row.lane_id == world.lane_of(second)
    assert (row.why["code"], row.why["rule"], row.routed_version) == ("rule", uid, 2)
    plain = world.message(hand_in(world, site, raw=a_mail("Newsletter"), book=book).queue_id)
    assert (plain.connection_id, plain.why["code"]) == (primary, "primary")
    elsewhere = world.message(hand_in(world, other, book=book).queue_id)
    assert elsewhere.connection_id == primary
    assert (book.has_rules(site), book.has_rules(other)) == (True, False)


def test_a_book_notices_changed_rules_and_unready_connections(world: World) -> None:
    site, book = world.a_site(), Rulebook()
    primary, second = world.a_connection(site), another_connection(world, site)
    assert world.message(hand_in(world, site, book=book).queue_id).connection_id == primary
    a_rule(world, site, ORDERS, connection=second)
    assert world.message(hand_in(world, site, book=book).queue_id).connection_id == second
    with world.db.write_connection() as connection:
        connection.execute(
            sa.text("UPDATE connection SET lane_id = NULL WHERE id = :id"), {"id": second}
        )
    assert world.message(hand_in(world, site, book=book).queue_id).connection_id == primary
    change_site(world, site, routing_enabled=False, routing_version=9)
    assert not Rulebook().has_rules(site)
    hand_in(world, site, book=book)
    assert not book.has_rules(site)


def test_a_held_mail_is_open_and_is_not_claimed(world: World) -> None:
    site = world.a_site(mode=Mode.HOLD)
    lane = world.lane_of(world.a_connection(site))
    accepted = hand_in(world, site)
    row = world.message(accepted.queue_id)
    assert (accepted.state, row.state, row.due_at) == (State.HELD, State.HELD, None)
    assert (row.finished_at, row.why) == (None, {"code": "mode-hold"})
    assert set(world.recipients(accepted.queue_id).values()) == {State.HELD}
    assert world.claim(lane) == []
    assert world.gaps() == 0


def test_what_a_control_blocks_is_counted_and_over(world: World) -> None:
    site = world.a_site()
    lane = world.lane_of(world.a_connection(site))
    a_rule(world, site, ORDERS, action="block", name="No orders")
    accepted = hand_in(world, site)
    row = world.message(accepted.queue_id)
    assert (accepted.state, row.finished_at, row.due_at) == (State.BLOCKED, world.now, None)
    assert (row.why["code"], row.why["name"]) == ("control", "No orders")
    with world.db.read() as session:
        assert session.scalars(sa.select(Recipient.is_due)).all() == [False]
    assert world.claim(lane) == []
    assert world.gaps() == 0


def test_a_repeated_request_hears_that_its_mail_is_held(world: World) -> None:
    site = world.a_site(mode=Mode.HOLD)
    with world.db.write() as session:
        login = Credential(
            site_id=site, kind=CredentialKind.API, username="u", digest="", created_at=world.now
        )
        session.add(login)
        session.flush()
        key = login.id
    once = Once(credential_id=key, digest="d", body_digest="b", lasts=timedelta(hours=1))
    first, again = (hand_in(world, site, credential_id=key, once=once) for _ in range(2))
    assert (again.queue_id, again.state) == (first.queue_id, State.HELD)


def test_redirected_mail_has_one_recipient_and_keeps_whom_it_was_meant_for(world: World) -> None:
    site = world.a_site(mode=Mode.REDIRECT_TO, redirect_to="me@staging.example")
    world.a_connection(site)
    meant = [f"p{n}@x.example" for n in range(60)]
    queue_id = hand_in(world, site, *meant).queue_id
    row = world.message(queue_id)
    assert world.recipients(queue_id) == {"me@staging.example": State.QUEUED}
    assert (row.recipient_count, row.to_line) == (1, "me@staging.example")
    assert row.received["redirected_from"] == meant[:50]
    assert (row.received["redirected"], row.why["redirected"]) == (60, 60)
    pinned = Pinned(connection_id=row.connection_id or 0, lane_id=row.lane_id)
    test = hand_in(world, site, "t@x.example", source=Source.TEST, pinned=pinned).queue_id
    assert list(world.recipients(test)) == ["t@x.example"]


def test_the_credential_is_the_initiator_where_no_header_names_one(world: World) -> None:
    site = world.a_site()
    world.a_connection(site)
    second = another_connection(world, site)
    a_rule(world, site, one("initiator", "is", "contact form"), connection=second)
    with world.db.write() as session:
        login = Credential(
            site_id=site,
            kind=CredentialKind.SMTP,
            label="Contact form",
            username="u",
            digest="",
            created_at=world.now,
        )
        session.add(login)
        session.flush()
        key = login.id
    named = b"X-Postroom-Initiator: Shop\r\n" + a_mail()
    assert world.message(hand_in(world, site, credential_id=key).queue_id).connection_id == second
    other = hand_in(world, site, credential_id=key, raw=named)
    assert world.message(other.queue_id).why["code"] == "primary"


def test_what_no_rule_may_move_has_no_version(world: World) -> None:
    site = world.a_site()
    world.a_connection(site)
    second = another_connection(world, site)
    pinned = Pinned(connection_id=second, lane_id=world.lane_of(second))
    for source, code in ((Source.TEST, "test"), (Source.API, "asked"), (Source.RESEND, "asked")):
        row = world.message(hand_in(world, site, source=source, pinned=pinned).queue_id)
        assert (row.why, row.routed_version, row.planned_id) == ({"code": code}, None, second)
    assert world.message(hand_in(world, site).queue_id).routed_version == 1


def test_recipients_of_a_redirected_mail_are_not_due_elsewhere(world: World) -> None:
    site = world.a_site(mode=Mode.REDIRECT_TO, redirect_to="me@staging.example")
    lane = world.lane_of(world.a_connection(site))
    hand_in(world, site, "a@x.example", "b@x.example")
    (claim,) = world.claim(lane)
    assert [address for _, address in claim.recipients] == ["me@staging.example"]
    world.finish(claim)
    with world.db.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Recipient)) == 1
    assert world.gaps() == 0
