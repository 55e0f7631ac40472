"""Saving the rules of a site."""

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.factories import a_connection, a_message, a_site, a_time
from webapp.audit import AuditEvent
from webapp.connections.models import Connection
from webapp.delivery.models import Message
from webapp.fields import FieldErrors
from webapp.installation import Installation
from webapp.routing import rules
from webapp.routing.models import Rule, RuleKind
from webapp.routing.rules import MAX_RULES, Draft, Saved, Typed
from webapp.sites.models import Site


def one(value: str, prop: str = "subject", operator: str = "contains") -> Typed:
    return (({"property": prop, "operator": operator, "value": value},),)


def save(
    session: Session, site: Site, *drafts: Draft, kind: RuleKind = RuleKind.ROUTE, on: bool = True
) -> Saved:
    enabled = on if kind is RuleKind.ROUTE else None
    return rules.save_rules(
        session, site, kind, drafts, enabled=enabled, actor="mara@agentur.example", now=a_time()
    )


def refused(session: Session, site: Site, *drafts: Draft, kind: RuleKind = RuleKind.ROUTE) -> set:
    with pytest.raises(FieldErrors) as error:
        save(session, site, *drafts, kind=kind)
    return set(error.value.errors)


def last_audit(session: Session) -> AuditEvent:
    return session.scalars(sa.select(AuditEvent).order_by(AuditEvent.id.desc())).first()  # type: ignore[return-value]


def test_rules_are_stored_in_order_and_keep_their_ids(installation: Installation) -> None:
    with installation.db.write() as session:
        site = a_site(session)
        a_connection(session, site)
        other = a_connection(session, site, primary=False)
        first = Draft(name=" Orders ", connection=other.uid, groups=one("order"))
        second = Draft(connection=other.uid, groups=one("invoice"))
        saved = save(session, site, first, second)
        assert saved.is_changed
        stored = rules.rules_of(session, site, RuleKind.ROUTE)
        assert [draft.name for draft in stored] == ["Orders", ""]
        assert (stored[0].connection, stored[0].groups) == (other.uid, one("order"))
        assert (site.routing_enabled, site.routing_version) == (True, 2)
        created = last_audit(session)
        assert created.action == "routing changed"
        assert created.changes["enabled"] == [False, True]
        save(session, site, stored[1], stored[0])
        turned = rules.rules_of(session, site, RuleKind.ROUTE)
        assert [draft.uid for draft in turned] == [stored[1].uid, stored[0].uid]
        assert last_audit(session).changes == {
            "order": [[stored[0].uid, stored[1].uid], [stored[1].uid, stored[0].uid]]
        }


def test_saving_what_is_stored_changes_nothing(installation: Installation) -> None:
    with installation.db.write() as session:
        site = a_site(session)
        connection = a_connection(session, site)
        save(session, site, Draft(connection=connection.uid, groups=one("a")))
        version = site.routing_version
        again = save(session, site, *rules.rules_of(session, site, RuleKind.ROUTE))
        assert (again.is_changed, site.routing_version) == (False, version)
        assert session.scalar(sa.select(sa.func.count()).select_from(AuditEvent)) == 1


def test_a_rule_that_is_not_sent_again_is_deleted_and_audited(installation: Installation) -> None:
    with installation.db.write() as session:
        site = a_site(session)
        save(session, site, Draft(action="block", groups=one("a")), kind=RuleKind.CONTROL)
        (stored,) = rules.rules_of(session, site, RuleKind.CONTROL)
        save(session, site, kind=RuleKind.CONTROL)
        assert rules.rules_of(session, site, RuleKind.CONTROL) == []
        before, after = last_audit(session).changes[f"rule {stored.uid}"]
        assert (before["action"], after) == ("block", None)


def test_routes_and_controls_do_not_touch_each_other(installation: Installation) -> None:
    with installation.db.write() as session:
        site = a_site(session)
        connection = a_connection(session, site)
        save(session, site, Draft(connection=connection.uid, groups=one("a")))
        save(session, site, Draft(action="hold", groups=one("b")), kind=RuleKind.CONTROL)
        (route,) = rules.rules_of(session, site, RuleKind.ROUTE)
        (control,) = rules.rules_of(session, site, RuleKind.CONTROL)
        assert (route.action, control.connection) == ("", "")
        assert site.routing_enabled


def test_switching_off_keeps_the_rules(installation: Installation) -> None:
    with installation.db.write() as session:
        site = a_site(session)
        connection = a_connection(session, site)
        save(session, site, Draft(connection=connection.uid, groups=one("a")))
        stored = rules.rules_of(session, site, RuleKind.ROUTE)
        assert save(session, site, *stored, on=False).is_changed
        assert not site.routing_enabled
        assert rules.rules_of(session, site, RuleKind.ROUTE) == stored


def test_each_mistake_is_told_at_its_field(installation: Installation) -> None:
    with installation.db.write() as session:
        site = a_site(session)
        mine = a_connection(session, site).uid
        assert refused(session, site, Draft(groups=one("a"))) == {"r0-connection"}
        assert refused(session, site, Draft(connection=mine, groups=one(" "))) == {"r0-g0-c0-value"}
        assert refused(session, site, Draft(connection=mine, groups=())) == {"r0-g0-c0-value"}
        assert refused(session, site, Draft(connection=mine, groups=one("\0a"))) == {
            "r0-g0-c0-value"
        }
        whole = one("Shop", "initiator", "contains")
        assert refused(session, site, Draft(connection=mine, groups=whole)) == {"r0-g0-c0-operator"}
        odd = Draft(name="n" * 101, connection=mine, groups=one("a", "nonsense"))
        assert refused(session, site, odd) == {"r0-name", "r0-g0-c0-property"}
        control = Draft(action="burn", groups=one("a"))
        good = Draft(action="hold", groups=one("a"))
        assert refused(session, site, good, control, kind=RuleKind.CONTROL) == {"r1-action"}
        many = [good] * (MAX_RULES + 1)
        assert refused(session, site, *many, kind=RuleKind.CONTROL) == {"rules"}
        assert rules.rules_of(session, site, RuleKind.CONTROL) == []


def test_only_connections_that_the_site_may_choose_are_led_to(installation: Installation) -> None:
    with installation.db.write() as session:
        site, other = a_site(session), a_site(session)
        shared = a_connection(session, None, primary=False)
        save(session, site, Draft(connection=shared.uid, groups=one("a")))
        foreign = a_connection(session, other)
        system = a_connection(session, None, primary=False, is_system=True)
        deleted = a_connection(session, site, primary=False, deleted_at=a_time())
        for connection in (foreign, system, deleted):
            draft = Draft(connection=connection.uid, groups=one("a"))
            assert refused(session, site, draft) == {"r0-connection"}


def test_a_rule_whose_connection_was_deleted_may_stay_but_not_be_copied(
    installation: Installation,
) -> None:
    with installation.db.write() as session:
        site = a_site(session)
        old = a_connection(session, site, primary=False, nickname="Old")
        save(session, site, Draft(connection=old.uid, groups=one("a")))
        session.get_one(Connection, old.id).deleted_at = a_time()
        session.flush()
        (stored,) = rules.rules_of(session, site, RuleKind.ROUTE)
        assert stored.connection == old.uid
        save(session, site, stored, on=False)
        (target,) = rules.targets_of(session, site)
        assert (target.name, target.is_gone, target.is_ready) == ("Old", True, False)
        copy = Draft(connection=old.uid, groups=one("b"))
        assert refused(session, site, stored, copy) == {"r1-connection"}


def test_a_rule_of_another_site_is_not_touched(installation: Installation) -> None:
    with installation.db.write() as session:
        site, other = a_site(session), a_site(session)
        save(session, other, Draft(action="block", groups=one("a")), kind=RuleKind.CONTROL)
        (theirs,) = rules.rules_of(session, other, RuleKind.CONTROL)
        taken = Draft(uid=theirs.uid, action="hold", groups=one("b"))
        save(session, site, taken, taken, kind=RuleKind.CONTROL)
        assert rules.rules_of(session, other, RuleKind.CONTROL) == [theirs]
        uids = [draft.uid for draft in rules.rules_of(session, site, RuleKind.CONTROL)]
        assert len({*uids, theirs.uid}) == 3
        assert session.scalar(sa.select(sa.func.count()).select_from(Rule)) == 3


def test_a_rule_that_is_sent_twice_is_two_rules(installation: Installation) -> None:
    with installation.db.write() as session:
        site = a_site(session)
        save(session, site, Draft(action="block", groups=one("a")), kind=RuleKind.CONTROL)
        (mine,) = rules.rules_of(session, site, RuleKind.CONTROL)
        save(session, site, mine, mine, kind=RuleKind.CONTROL)
        first, second = rules.rules_of(session, site, RuleKind.CONTROL)
        assert first == mine
        assert second.uid != mine.uid


def test_waiting_mail_is_planned_by_the_saved_rules_at_once(installation: Installation) -> None:
    with installation.db.write() as session:
        site = a_site(session)
        primary = a_connection(session, site)
        other = a_connection(session, site, primary=False, nickname="Brevo")
        mail = a_message(session, site, subject="Order 1", connection=primary)
        saved = save(session, site, Draft(connection=other.uid, groups=one("order")))
        assert saved.replanned.by == (("Brevo", 1),)
        session.expire_all()
        assert session.get_one(Message, mail.id).connection_id == other.id
