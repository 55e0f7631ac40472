"""Registrations and links: what saving, linking and removing do to rows and to waiting mail."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.factories import (
    a_connection,
    a_grant,
    a_link,
    a_mailbox,
    a_message,
    a_site,
    an_app,
    an_installation,
)
from webapp.audit import AuditEvent
from webapp.connections.models import Connection, Health
from webapp.delivery import replan
from webapp.delivery.models import Lane, Message, Outcome, Source, State
from webapp.fields import FieldErrors
from webapp.installation import Installation
from webapp.microsoft import service
from webapp.microsoft.clouds import clouds
from webapp.microsoft.models import Grant, GrantState, Link, OAuthApp
from webapp.microsoft.service import Account, AnotherAccount, AppValues, Attached
from webapp.sites.models import Site

CLIENT_ID = "3f1c2d84-9a07-4e51-8a3b-6d2f0c9b71e5"
TENANT_ID = "8d1f0000-0000-4000-8000-0000000000c2"
SECRET = "8Q~abcdefghijklmnopqrstuvwxyz0123456789A"
ANN = Account(
    tenant_id=TENANT_ID,
    object_id="99999999-8888-4777-8666-555555555555",
    address="ann@contoso.example",
    sign_in_name="ann@contoso.example",
    name="Ann Example",
    addresses=("ann@contoso.example", "orders@contoso.example"),
)
BOB = Account(tenant_id=TENANT_ID, object_id="0" * 36, address="bob@contoso.example")


@dataclass
class Place:
    """A site whose primary connection is to be linked."""

    session: Session
    installation: Installation
    site: Site
    connection: Connection

    def save_app(self, **values: object) -> OAuthApp:
        given = {
            "name": "Agency app",
            "cloud": "global",
            "tenant": "common",
            "client_id": CLIENT_ID,
            "secret": SECRET,
        } | values
        app = given.pop("app", None)
        own = given.pop("own", False)
        return service.save_app(
            self.session,
            self.installation.keyring,
            app,  # type: ignore[arg-type]
            AppValues(**given),  # type: ignore[arg-type]
            clouds=clouds(self.installation.settings),
            connection=self.connection if own else None,
            actor="mara@agentur.example",
            now=self.installation.db.now(),
        )

    def attach(
        self, app: OAuthApp, account: Account = ANN, connection: Connection | None = None
    ) -> Attached:
        return service.attach(
            self.session,
            self.installation.keyring,
            self.site,
            connection or self.connection,
            app,
            account,
            cache="{}",
            scopes=["User.Read", "Mail.Send"],
            actor="mara@agentur.example",
            now=self.installation.db.now(),
        )

    def detach(self, connection: Connection | None = None) -> int:
        return service.detach(
            self.session,
            self.site,
            connection or self.connection,
            actor="mara@agentur.example",
            now=self.installation.db.now(),
        )

    def waiting(self, **values: object) -> Message:
        return a_message(
            self.session,
            self.site,
            state=State.QUEUED,
            due_at=self.installation.db.now(),
            **values,  # type: ignore[arg-type]
        )

    def lane(self) -> Lane:
        assert self.connection.lane_id is not None
        return self.session.get_one(Lane, self.connection.lane_id, populate_existing=True)


@pytest.fixture
def place(db_url: str, tmp_path: Path) -> Iterator[Place]:
    installation = an_installation(db_url, tmp_path)
    with installation.db.write() as session:
        site = a_site(session)
        connection = a_connection(session, site)
        connection.mailer, connection.lane_id = "outlook", None
        connection.settings = {"outlook": {"one_click": True, "shared_app": ""}}
        connection.from_email = site.admin_email
        site.primary_connection_id = connection.id
        session.flush()
        yield Place(session, installation, site, connection)
    installation.close()


# ---- registrations ----


def test_a_secret_is_sealed_and_never_audited(place: Place) -> None:
    app = place.save_app()
    assert app.secret is not None
    assert SECRET not in app.secret
    assert service.secret_of(app, place.installation.keyring) == SECRET
    place.session.flush()
    (event,) = place.session.scalars(sa.select(AuditEvent).where(AuditEvent.object_id == app.uid))
    assert event.changes["secret"] == "changed"
    assert SECRET not in str(event.changes)


@pytest.mark.parametrize(
    ("values", "field", "sentence"),
    [
        ({"client_id": "shop"}, "client_id", service.NO_GUID),
        ({"client_id": ""}, "client_id", service.NO_GUID),
        ({"secret": TENANT_ID}, "client_secret", service.SECRET_ID),
        ({"secret": "x" * 201}, "client_secret", service.TOO_LONG),
        ({"cloud": "moon"}, "cloud", service.NO_CLOUD),
        ({"tenant": ""}, "tenant", service.NO_TENANT),
        ({"tenant": "not a tenant"}, "tenant", service.NO_TENANT),
        ({"cloud": "usgov", "tenant": "common"}, "tenant", service.PERSONAL_ELSEWHERE),
        ({"secret_expires_on": "soon"}, "secret_expires_on", service.NO_DATE),
        ({"secret_expires_on": "2020-01-01"}, "secret_expires_on", service.LONG_GONE),
        ({"secret_expires_on": "2199-01-01"}, "secret_expires_on", service.TOO_FAR),
        ({"name": " "}, "name", service.NO_NAME),
    ],
)
def test_what_cannot_be_right_is_said_at_the_field(
    place: Place, values: dict[str, object], field: str, sentence: str
) -> None:
    with pytest.raises(FieldErrors) as refusal:
        place.save_app(**values)
    assert refusal.value.errors == {field: sentence}
    assert place.session.scalar(sa.select(sa.func.count()).select_from(OAuthApp)) == 0


def test_a_tenant_may_be_a_domain_or_an_id(place: Place) -> None:
    assert place.save_app(tenant="Contoso.Example ").tenant == "contoso.example"
    assert place.save_app(tenant=TENANT_ID).tenant == TENANT_ID
    with pytest.raises(FieldErrors, match="Application ID"):
        place.save_app(tenant=CLIENT_ID)


def test_an_own_registration_may_be_saved_before_it_is_complete(place: Place) -> None:
    app = place.save_app(own=True, name="", client_id="", secret="")
    assert not service.is_complete(app)
    again = place.save_app(app=app, own=True, name="")
    assert again is app
    assert service.is_complete(app)


def test_a_date_that_has_passed_stays_as_it_is(place: Place) -> None:
    app = place.save_app(secret_expires_on="")
    app.secret_expires_on = (place.installation.db.now() - timedelta(days=3)).date()
    gone = app.secret_expires_on.isoformat()
    assert place.save_app(app=app, secret="", secret_expires_on=gone).secret is not None
    with pytest.raises(FieldErrors, match="past"):
        place.save_app(app=app, secret_expires_on=gone)


def test_a_blank_secret_keeps_the_stored_one(place: Place) -> None:
    app = place.save_app()
    place.save_app(app=app, secret="")
    assert service.secret_of(app, place.installation.keyring) == SECRET
    place.save_app(app=app, secret="", remove_secret=True)
    assert app.secret is None


@pytest.mark.parametrize(
    "moved",
    [
        {"tenant": "organizations"},
        {"cloud": "china", "tenant": "organizations"},
        {"client_id": TENANT_ID},
    ],
)
def test_another_registration_drops_secret_and_link(place: Place, moved: dict[str, str]) -> None:
    app = place.save_app(own=True)
    place.connection.settings = {"outlook": {"one_click": False}}
    place.attach(app)
    grant_id = place.connection.grant_id
    place.save_app(app=app, own=True, secret="", **moved)
    assert app.secret is None
    assert place.connection.grant_id is None
    assert place.connection.lane_id is None
    grant = place.session.get_one(Grant, grant_id)
    assert (grant.state, grant.cache) == (GrantState.REMOVED, None)


def test_a_shared_registration_in_use_keeps_its_id(place: Place) -> None:
    app = place.save_app()
    place.attach(app)
    with pytest.raises(FieldErrors, match="Linked connections"):
        place.save_app(app=app, client_id=TENANT_ID)
    with pytest.raises(service.StillUsed):
        service.remove_app(place.session, app, actor="x", now=place.installation.db.now())


def test_a_new_secret_lets_mail_go_that_the_old_one_stopped(place: Place) -> None:
    app = place.save_app()
    place.attach(app)
    now = place.installation.db.now()
    assert place.connection.grant_id is not None
    service.note_refusal(
        place.session,
        place.connection.grant_id,
        kind="misconfigured",
        code="AADSTS7000222",
        words="expired",
        now=now,
    )
    version = place.connection.version
    assert place.lane().blocked_kind == Outcome.MISCONFIGURED
    assert (app.problem_code, place.connection.health) == ("AADSTS7000222", Health.MISCONFIGURED)
    place.save_app(app=app, secret=SECRET[::-1])
    assert not place.lane().is_blocked
    assert (app.problem_code, app.problem_since) == ("", None)
    assert place.connection.health == Health.UNKNOWN
    assert place.connection.version > version


# ---- links ----


def test_a_link_gives_the_waiting_mail_its_lane(place: Place) -> None:
    mail = place.waiting(connection_id=None, lane_id=None)
    attached = place.attach(place.save_app())
    place.session.refresh(mail)
    assert mail.lane_id == place.connection.lane_id == attached.mailbox.lane_id
    assert mail.connection_id == place.connection.id
    assert attached.waiting == 1
    lane = place.lane()
    assert (lane.concurrency, lane.per_minute, lane.recipients_per_day) == (3, 30, 10_000)


def test_from_email_becomes_the_account_unless_somebody_chose_another(place: Place) -> None:
    app = place.save_app()
    assert place.attach(app).filled_from
    assert place.connection.from_email == ANN.address
    place.connection.from_email = "service@contoso.example"
    assert not place.attach(app).filled_from
    assert place.connection.from_email == "service@contoso.example"


def test_linking_again_refuses_another_account_until_the_link_is_removed(place: Place) -> None:
    app = place.save_app()
    place.attach(app)
    with pytest.raises(AnotherAccount, match=ANN.address):
        place.attach(app, BOB)
    place.detach()
    assert place.attach(app, BOB).mailbox.address == BOB.address


def test_the_address_of_the_account_before_is_no_choice_by_hand(place: Place) -> None:
    app = place.save_app()
    place.attach(app)
    place.connection.from_email = ANN.address.upper()
    place.detach()
    assert place.attach(app, BOB).filled_from
    assert place.connection.from_email == BOB.address


def test_another_address_of_the_account_stays(place: Place) -> None:
    place.connection.from_email = "orders@contoso.example"
    assert not place.attach(place.save_app()).filled_from
    assert place.connection.from_email == "orders@contoso.example"


def test_linking_again_lifts_what_a_refusal_stopped_but_no_request_to_wait(place: Place) -> None:
    app = place.save_app()
    grant = place.attach(app).grant
    now = place.installation.db.now()
    for kind, until, stays in (
        ("needs-reauthorisation", None, False),
        ("transient", now + timedelta(minutes=5), True),
    ):
        lane = place.lane()
        lane.is_blocked, lane.blocked_kind, lane.blocked_until = True, kind, until
        grant.state = GrantState.NEEDS_REAUTHORISATION
        place.session.flush()
        place.attach(app)
        assert place.lane().is_blocked is stays
        assert grant.state == GrantState.LINKED


def test_removing_a_link_keeps_the_mail_and_forgets_the_tokens(place: Place) -> None:
    app = place.save_app()
    grant = place.attach(app).grant
    mail = place.waiting(connection_id=place.connection.id, lane_id=place.connection.lane_id)
    assert place.detach() == 1
    place.session.refresh(mail)
    place.session.refresh(grant)
    assert (mail.lane_id, mail.state) == (None, State.QUEUED)
    assert mail.due_at is not None
    assert (grant.cache, grant.state) == (None, GrantState.REMOVED)
    assert place.attach(app).waiting == 1
    place.session.refresh(mail)
    assert mail.lane_id == place.connection.lane_id is not None


def test_removing_at_one_site_never_unlinks_another(place: Place) -> None:
    app = place.save_app()
    other = a_connection(place.session, place.site)
    other.mailer, other.settings = "outlook", {"outlook": {"one_click": True}}
    grant = place.attach(app).grant
    assert place.attach(app, connection=other).grant is grant
    place.detach()
    assert other.grant_id == grant.id
    assert (grant.state, grant.cache is None) == (GrantState.LINKED, False)


def test_both_links_are_kept_when_one_click_is_switched(place: Place) -> None:
    shared = place.save_app()
    by_one_click = place.attach(shared).grant
    own = place.save_app(own=True, client_id=TENANT_ID)
    place.connection.settings = {"outlook": {"one_click": False}}
    service.use_app(place.session, place.connection, place.installation.db.now())
    assert (place.connection.grant_id, place.connection.lane_id) == (None, None)
    by_own = place.attach(own, BOB).grant
    for one_click, grant in ((True, by_one_click), (False, by_own)):
        place.connection.settings = {"outlook": {"one_click": one_click}}
        service.use_app(place.session, place.connection, place.installation.db.now())
        assert place.connection.grant_id == grant.id
        mailbox = service.mailbox_of(place.session, place.connection)
        assert mailbox is not None
        assert place.connection.lane_id == mailbox.lane_id


def test_with_several_shared_registrations_one_is_chosen(place: Place) -> None:
    first, second = place.save_app(), place.save_app(client_id=TENANT_ID)
    assert service.shared_app_of(place.session, place.connection) is None
    place.connection.settings = {"outlook": {"one_click": True, "shared_app": second.uid}}
    assert service.app_in_use(place.session, place.connection) is second
    place.session.delete(second)
    place.session.flush()
    assert service.app_in_use(place.session, place.connection) is first


def test_a_refusal_stops_the_lane_and_shows_on_every_connection_that_uses_it(place: Place) -> None:
    app = place.save_app()
    other = a_connection(place.session, place.site)
    other.mailer, other.settings = "outlook", {"outlook": {"one_click": True}}
    grant = place.attach(app).grant
    place.attach(app, connection=other)
    service.note_refusal(
        place.session,
        grant.id,
        kind="needs-reauthorisation",
        code="AADSTS50173",
        words="revoked",
        now=place.installation.db.now(),
    )
    for connection in (place.connection, other):
        place.session.refresh(connection)
        assert connection.health == Health.NEEDS_REAUTHORISATION
        assert (connection.last_code, connection.last_words) == ("AADSTS50173", "revoked")
    lane = place.lane()
    assert (lane.is_blocked, lane.blocked_until) == (True, None)
    assert lane.blocked_kind == "needs-reauthorisation"
    assert app.problem_since is None


def test_the_factories_make_what_linking_makes(place: Place) -> None:
    keyring = place.installation.keyring
    app, mailbox = an_app(place.session, keyring), a_mailbox(place.session)
    grant = a_grant(place.session, keyring, app, mailbox)
    a_link(place.session, place.connection, grant)
    assert service.app_in_use(place.session, place.connection) is app
    assert service.mailbox_of(place.session, place.connection) is mailbox
    assert place.session.get(Link, (place.connection.id, app.id)) is not None
    place.detach()
    assert grant.state == GrantState.REMOVED


def test_a_removed_link_goes_though_it_became_unclear_which_registration_counts(
    place: Place,
) -> None:
    grant = place.attach(place.save_app()).grant
    place.save_app(client_id=TENANT_ID)
    assert service.app_in_use(place.session, place.connection) is None
    place.detach()
    assert (grant.cache, grant.state) == (None, GrantState.REMOVED)
    assert place.session.scalar(sa.select(Link)) is None


def test_a_registration_that_works_again_lets_its_mail_go(place: Place) -> None:
    app = place.save_app()
    grant = place.attach(app).grant
    now = place.installation.db.now()
    refusal = {"kind": "misconfigured", "code": "AADSTS99", "words": "no", "now": now}
    service.note_refusal(place.session, grant.id, **refusal)  # type: ignore[arg-type]
    version = place.connection.version
    service.note_works_again(place.session, grant.id, now)
    assert (app.problem_since, place.lane().is_blocked) == (None, False)
    assert (place.connection.health, place.connection.version) == (Health.UNKNOWN, version + 1)
    service.note_works_again(place.session, grant.id, now)
    assert place.connection.version == version + 1


def test_no_secret_is_in_what_is_printed_of_the_values() -> None:
    values = AppValues(cloud="global", tenant="common", client_id=CLIENT_ID, secret=SECRET)
    assert SECRET not in repr(values)


def test_what_is_on_the_network_when_a_link_is_removed_is_history(place: Place) -> None:
    place.attach(place.save_app())
    version = place.connection.version
    place.detach()
    assert place.connection.version > version


def test_a_refusal_counts_for_more_than_a_request_to_wait(place: Place) -> None:
    grant, now = place.attach(place.save_app()).grant, place.installation.db.now()
    lane = place.lane()
    lane.is_blocked, lane.blocked_kind = True, "transient"
    lane.blocked_until = now + timedelta(minutes=5)
    place.session.flush()
    service.note_refusal(
        place.session, grant.id, kind="needs-reauthorisation", code="", words="revoked", now=now
    )
    assert (lane.blocked_kind, lane.blocked_until) == ("needs-reauthorisation", None)


def test_a_test_stays_with_the_connection_that_it_tests(place: Place) -> None:
    attached = place.attach(place.save_app())
    mail = place.waiting(
        connection_id=place.connection.id, lane_id=place.connection.lane_id, source=Source.TEST
    )
    other = a_connection(place.session, place.site)
    place.site.primary_connection_id = other.id
    place.session.flush()
    replan.routing_changed(place.session, place.site, place.installation.db.now())
    place.session.refresh(mail)
    assert (mail.connection_id, mail.lane_id) == (place.connection.id, attached.mailbox.lane_id)
