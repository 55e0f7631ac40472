"""The page of the queue: lanes, and what is done to one mail, to a selection, to all."""

import itertools
from datetime import timedelta

import pytest
import sqlalchemy as sa

from tests.factories import (
    a_connection,
    a_lane,
    a_membership,
    a_message,
    a_site,
    a_time,
    a_user,
)
from tests.pages import Browser, Page
from webapp.accounts.models import Role
from webapp.audit import AuditEvent
from webapp.connections.models import Connection
from webapp.delivery import tally
from webapp.delivery.lanes import UNREACHABLE
from webapp.delivery.models import Attempt, Lane, Message, Outcome, Recipient, State
from webapp.installation import Installation
from webapp.queue import mails
from webapp.sites.models import Site


class Yard:
    """Somebody who operates one site, and a lane that this site shares with another."""

    def __init__(self, client: Browser, installation: Installation) -> None:
        self.client, self.db = client, installation.db
        with self.db.write() as session:
            self.lane, self.shared = a_lane(session, per_minute=30), a_lane(session)
            self.site = a_site(session, name="Galerie Nord", slug="galerie-nord")
            self.other = a_site(session, name="Café Süd", slug="cafe")
            self.mine = a_connection(session, self.site, lane=self.lane)
            self.both = a_connection(session, None, lane=self.shared, nickname="House mail")
            self.other.primary_connection_id = self.both.id
            self.operator = a_user(session)
            self.admin = a_user(session, is_admin=True)
            self.viewer = a_user(session)
            a_membership(session, self.operator, self.site, Role.OPERATOR)
            a_membership(session, self.viewer, self.site, Role.VIEWER)
        client.sign_in(self.operator)

    def mail(
        self,
        subject: str = "Order",
        state: State = State.QUEUED,
        *,
        site: Site | None = None,
        connection: Connection | None = None,
        **values: object,
    ) -> str:
        with self.db.write() as session:
            return a_message(
                session,
                site or self.site,
                connection=connection or self.mine,
                state=state,
                subject=subject,
                **values,  # type: ignore[arg-type]
            ).queue_id

    def states(self, *names: str) -> list[str]:
        with self.db.read() as session:
            query = sa.select(Message.queue_id, Message.state)
            found = dict(session.execute(query).all())
        return [found[name] for name in names] if names else sorted(found.values())

    def set(self, lane: Lane, **values: object) -> None:
        with self.db.write() as session:
            session.execute(sa.update(Lane).where(Lane.id == lane.id).values(**values))

    def lane_now(self, lane: Lane) -> Lane:
        with self.db.read() as session:
            return session.get_one(Lane, lane.id)

    def page(self, query: str = "") -> Page:
        return self.client.get(f"/queue{query}")

    def gaps(self) -> int:
        with self.db.reader.connect() as connection:
            return sum(abs(account.gap) for account in tally.accounts(connection))


@pytest.fixture
def yard(client: Browser, installation: Installation) -> Yard:
    return Yard(client, installation)


def rows(page: Page) -> list[str]:
    return [row.text for row in page.all("tbody")[0].all("tr")]


def test_lanes_tell_how_deep_they_are_and_what_stops_them(yard: Yard) -> None:
    yard.mail(at=a_time() - timedelta(hours=2))
    yard.mail()
    yard.mail(state=State.SENDING)
    stands = yard.db.now() - timedelta(minutes=20)
    yard.set(
        yard.lane, is_blocked=True, trips=2, blocked_kind=UNREACHABLE, blocked_since=stands,
        blocked_until=yard.db.now() + timedelta(minutes=5), blocked_words="Connection refused",
    )  # fmt: skip
    page = yard.page()
    (row,) = rows(page)
    for words in (
        "mail. hoster. example",
        "Other SMTP: Galerie Nord",
        "Out of reach",
        "Connection refused",
        "30 a minute",
        "2 hr",
    ):
        assert words in row
    assert page.one(data_label="Waiting").text.startswith("2")
    assert page.one(data_label="In flight").text == "1"
    assert "Queue" in page.one("nav", id="menu").text
    yard.set(yard.lane, blocked_until=None, blocked_kind="misconfigured")
    assert "Stopped" in rows(yard.page())[0]


def test_only_whoever_may_manage_a_queue_sees_one(yard: Yard) -> None:
    yard.mail("Mine")
    yard.mail("Theirs", site=yard.other, connection=yard.both)
    page = yard.page()
    assert "Mine" in page.text
    assert "Theirs" not in page.text
    assert len(rows(page)) == 1
    yard.client.sign_in(yard.admin)
    page = yard.page()
    assert "Theirs" in page.text
    assert len(rows(page)) == 2
    assert "Theirs" not in yard.page("?site=galerie-nord").text
    yard.client.sign_in(yard.viewer)
    page = yard.page()
    assert "No queue of yours" in page.text
    assert "Mine" not in page.text
    assert page.one("nav", id="menu").text.count("Queue") == 0
    yard.client.get("/queue?site=cafe", status=404)


def test_a_lane_is_paused_and_resumed(yard: Yard) -> None:
    yard.mail()
    page = yard.client.post("/queue/lane", {"lane": yard.lane.id, "do": "pause"})
    assert "Nothing new leaves by this lane" in page.notices[0]
    assert "Paused" in rows(page)[0]
    assert yard.lane_now(yard.lane).is_paused
    assert "somebody has paused" in yard.client.get("/sites/galerie-nord/log").text
    page = yard.client.post("/queue/lane", {"lane": yard.lane.id, "do": "resume"})
    assert "Open" in rows(page)[0]
    assert not yard.lane_now(yard.lane).is_paused
    with yard.db.read() as session:
        actions = session.scalars(sa.select(AuditEvent.action).order_by(AuditEvent.id)).all()
    assert actions == ["lane-pause", "lane-resume"]


def test_a_lane_that_others_send_by_is_left_to_instance_admins(yard: Yard) -> None:
    yard.mail("Mine", connection=yard.both)
    yard.mail("Theirs", site=yard.other, connection=yard.both)
    page = yard.page()
    assert "only an instance admin can pause it" in rows(page)[0]
    assert page.one(data_label="Waiting").text.startswith("1")
    page = yard.client.post("/queue/lane", {"lane": yard.shared.id, "do": "pause"})
    assert "instance admin" in page.notices[0]
    assert not yard.lane_now(yard.shared).is_paused
    yard.client.sign_in(yard.admin)
    yard.client.post("/queue/lane", {"lane": yard.shared.id, "do": "pause"})
    assert yard.lane_now(yard.shared).is_paused


def test_a_lane_of_others_is_not_there(yard: Yard) -> None:
    yard.client.post("/queue/lane", {"lane": yard.shared.id, "do": "pause"}, status=404)
    yard.client.post("/queue/lane", {"lane": 99999, "do": "pause"}, status=404)
    yard.client.sign_in(yard.admin)
    yard.client.post("/queue/lane", {"lane": 99999, "do": "pause"}, status=404)
    assert yard.client.send("/queue/lane", {"lane": "x", "do": "pause"}).status_code == 303


def test_a_lane_tries_now(yard: Yard) -> None:
    later = yard.db.now() + timedelta(hours=1)
    put_off = [yard.mail(state=State.DEFERRED, due_at=later) for _ in range(2)]
    stopped = {"is_blocked": True, "blocked_since": yard.db.now(), "blocked_until": later}
    yard.set(yard.lane, blocked_kind=UNREACHABLE, trips=3, **stopped)
    page = yard.client.post("/queue/lane", {"lane": yard.lane.id, "do": "try"})
    assert "with 2 mails that were put off" in page.notices[0]
    lane = yard.lane_now(yard.lane)
    assert (lane.is_blocked, lane.trips) == (True, 3)  # one mail finds out
    assert lane.blocked_until <= yard.db.now()
    with yard.db.read() as session:
        due = session.scalars(sa.select(Message.due_at).where(Message.queue_id.in_(put_off)))
        assert all(at <= yard.db.now() for at in due)
    yard.set(yard.lane, blocked_kind="misconfigured", trips=0, **stopped | {"blocked_until": None})
    yard.client.post("/queue/lane", {"lane": yard.lane.id, "do": "try"})
    assert not yard.lane_now(yard.lane).is_blocked


# ---- mails ----


def test_each_view_shows_its_mail_and_what_can_be_done(yard: Yard) -> None:
    for state in (State.QUEUED, State.DEFERRED, State.HELD, State.FAILED, State.SENT):
        yard.mail(f"It is {state}", state)
    views = {
        "waiting": ("queued", ["Cancel…"]),
        "retrying": ("deferred", ["Retry now", "Cancel…"]),
        "held": ("held", ["Release…", "Cancel…"]),
        "failed": ("failed", ["Retry now"]),
    }
    for view, (state, buttons) in views.items():
        page = yard.page(f"?status={view}")
        assert [node.text for node in page.all("a", class_="name")][1:] == [f"It is {state}"]
        form = page.one("form", class_="log")
        assert [node.text for node in form.all("button")] == buttons
        assert len(form.all("input", name="mail")) == 1


def test_chosen_mails_are_cancelled_after_a_question(yard: Yard) -> None:
    names = [yard.mail() for _ in range(3)]
    form = {"do": "cancel", "mail": names[:2], "scope": "chosen"}
    question = yard.client.post("/queue", form)
    assert question.h1 == "Cancel 2 mails?"
    assert yard.states(*names) == ["queued"] * 3
    assert [node["value"] for node in question.all("input", name="mail")] == names[:2]
    page = yard.client.post("/queue", form | {"sure": "yes"})
    assert page.notices == ["2 mails were cancelled."]
    assert yard.states(*names) == ["cancelled", "cancelled", "queued"]
    assert yard.gaps() == 0


def test_held_mail_is_released(yard: Yard) -> None:
    names = [yard.mail(state=State.HELD) for _ in range(2)]
    form = {"do": "release", "mail": names, "sure": "yes"}
    page = yard.client.post("/queue?status=held", form)
    assert page.notices == ["2 mails were released."]
    assert yard.states(*names) == ["queued", "queued"]
    page = yard.client.post("/queue?status=held", form)
    assert page.notices == [
        "0 mails were released. 2 were in no state for it and stay as they are."
    ]


def test_failed_mail_is_tried_again_without_a_question(yard: Yard) -> None:
    name = yard.mail(state=State.FAILED, attempts=1)
    with yard.db.write() as session:
        key = session.scalars(sa.select(Message.id)).one()
        session.add(
            Attempt(
                message_id=key, number=1, outcome=Outcome.TRANSIENT, code="451", details={},
                started_at=a_time(),
            )
        )  # fmt: skip
        session.execute(sa.update(Recipient).values(code="451", attempt=1))
    page = yard.client.post("/queue?status=failed", {"do": "retry", "mail": [name]})
    assert page.notices == ["1 mail is tried again now."]
    assert yard.states(name) == ["deferred"]
    assert yard.gaps() == 0


def test_mail_of_others_is_never_touched(yard: Yard) -> None:
    theirs = yard.mail(site=yard.other, connection=yard.both)
    form = {"do": "cancel", "mail": [theirs], "sure": "yes"}
    yard.client.post("/queue", form, status=404)
    mine = yard.mail()
    yard.client.post("/queue", form | {"mail": [theirs, mine]})
    yard.client.post("/queue", {"do": "cancel", "scope": "all", "sure": "yes"})
    assert yard.states(theirs, mine) == ["queued", "cancelled"]


def test_nothing_chosen_and_nothing_to_do_say_so(yard: Yard) -> None:
    page = yard.client.post("/queue", {"do": "cancel", "sure": "yes"})
    assert page.notices == ["Choose at least one mail."]
    assert yard.client.post("/queue?status=failed", {"do": "cancel", "sure": "yes"}).notices == []


def test_all_that_match_are_worked_off_a_part_at_a_time(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mails, "BATCH", 2)
    ticks = itertools.count(step=1.5)
    defaults = {**mails.do_all.__kwdefaults__, "clock": lambda: next(ticks)}  # type: ignore[dict-item]
    monkeypatch.setattr(mails.do_all, "__kwdefaults__", defaults)
    names = [yard.mail() for _ in range(7)]
    elsewhere = yard.mail(connection=yard.both)
    query = f"/queue?lane={yard.lane.id}"
    question = yard.client.post(query, {"do": "cancel", "scope": "all"})
    assert question.h1 == "Cancel 7 mails?"
    form = {node["name"]: node["value"] for node in question.one("main").all("input")}
    later = yard.mail()
    page = yard.client.post(query, form | {"sure": "yes"})
    assert page.one(role="status").text == "Cancel: 4 done, 3 left."
    form = {node["name"]: node["value"] for node in page.one("main").all("input")}
    page = yard.client.post(query, form | {"sure": "yes"})
    assert page.notices == ["7 mails were cancelled."]
    assert set(yard.states(*names)) == {"cancelled"}
    assert yard.states(elsewhere, later) == ["queued", "queued"]
    assert yard.gaps() == 0


def test_the_list_is_paged(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mails, "PAGE", 2)
    for number in range(5):
        yard.mail(f"Mail {number}")

    def shown(page: Page) -> list[str]:
        return [node.text for node in page.all("a", class_="name")][1:]

    first = yard.page()
    assert shown(first) == ["Mail 4", "Mail 3"]
    second = yard.client.get(first.links()["Older"])
    assert shown(second) == ["Mail 2", "Mail 1"]
    third = yard.client.get(second.links()["Older"])
    assert shown(third) == ["Mail 0"]
    back = yard.client.get(third.links()["Newer"])
    assert shown(back) == ["Mail 2", "Mail 1"]
    assert shown(yard.client.get(back.links()["Newer"])) == ["Mail 4", "Mail 3"]
