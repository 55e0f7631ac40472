"""The dry run: it says what `plan` decides, and why."""

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from tests.factories import a_connection, a_mail, a_message, a_site, a_time
from tests.routing.test_rules import one, save
from webapp.connections.models import Backup
from webapp.delivery.models import Source
from webapp.installation import Installation
from webapp.mime.sender import FromReason
from webapp.routing import trial
from webapp.routing.conditions import Condition, MailFacts, Operator, Property
from webapp.routing.models import RuleKind
from webapp.routing.rules import Draft, Target
from webapp.routing.service import RuleRow, SiteRoute, plan, rules_from
from webapp.routing.trial import Ground, Trial, TypedMail, Verdict
from webapp.sites.models import Site

WORDS = st.sampled_from(["", "order", "news", "a@x.example", "b@x.example"])
CONDITIONS = st.fixed_dictionaries(
    {
        "property": st.sampled_from(["subject", "to", "from-email", "initiator"]),
        "operator": st.sampled_from([operator.value for operator in Operator]),
        "value": WORDS,
    }
)
GROUPS = st.lists(
    st.lists(CONDITIONS, min_size=1, max_size=2).map(tuple), min_size=1, max_size=2
).map(tuple)
CONTROLS = st.lists(
    st.builds(Draft, action=st.sampled_from(["allow", "block", "hold", ""]), groups=GROUPS),
    max_size=3,
)
ROUTES = st.lists(
    st.builds(Draft, connection=st.sampled_from(["ready", "not-ready", "gone"]), groups=GROUPS),
    max_size=3,
)
FACTS = st.builds(
    MailFacts,
    subject=WORDS,
    message=st.just(""),
    from_email=WORDS,
    from_name=st.just(""),
    to=st.lists(WORDS, max_size=2).map(tuple),
    cc=st.just(()),
    bcc=st.just(()),
    reply_to=st.just(()),
    headers=st.just(()),
    initiator=WORDS,
)
TARGETS = {
    "ready": Target(id=7, uid="ready", name="Ready"),
    "not-ready": Target(id=8, uid="not-ready", name="Not ready", is_ready=False),
}


def ground(controls: list[Draft], routes: list[Draft], *, is_on: bool) -> Ground:
    rows: list[RuleRow] = []
    for kind, drafts in ((RuleKind.CONTROL, controls), (RuleKind.ROUTE, routes)):
        for number, draft in enumerate(drafts, start=1):
            target = TARGETS.get(draft.connection)
            groups = [list(group) for group in draft.groups]
            key = target.id if target else None
            rows.append((kind, str(number), draft.name, key, draft.action, groups))
    site = SiteRoute(
        site_id=1,
        mode="live",
        retry_hours=72,
        connection_id=1,
        lane_id=1,
        rules=rules_from(rows, routing_enabled=is_on),
        lanes={7: 70},
    )
    return Ground(
        site=site,
        controls=tuple(controls),
        routes=tuple(routes),
        is_routing_on=is_on,
        targets=TARGETS,
    )


@given(controls=CONTROLS, routes=ROUTES, facts=FACTS, is_on=st.booleans())
def test_the_rule_that_the_dry_run_names_is_the_one_that_decides(
    controls: list[Draft], routes: list[Draft], facts: MailFacts, is_on: bool
) -> None:
    here = ground(controls, routes, is_on=is_on)
    why = plan(here.site, lambda: facts).why
    tried_controls = list(trial.tried_controls(here, facts))
    tried_routes = list(trial.tried_routes(here, facts))
    control = [rule for rule in tried_controls if rule.verdict is Verdict.DECIDES]
    route = [rule for rule in tried_routes if rule.verdict is Verdict.DECIDES]
    if control and control[0].target != "allow":
        (decider,) = control
        assert (why["code"], why["rule"]) == ("control", str(decider.number))
    elif route:
        (decider,) = route
        assert (why["code"], why["rule"]) == ("rule", str(decider.number))
    else:
        assert why["code"] == "primary"
        return
    assert why["group"] == decider.group
    for rule in (*tried_controls, *tried_routes):
        met = [all(clause.is_met for clause in group) for group in rule.groups]
        assert any(met) == (rule.verdict is Verdict.DECIDES)


def clause(prop: str, operator: str, value: str, typed: TypedMail) -> tuple[bool, str]:
    condition = Condition(property=Property(prop), operator=Operator(operator), value=value)
    found = trial.clause_of(condition, trial.typed_mail(typed).facts)
    return found.is_met, found.value


def test_each_clause_tells_the_value_that_decided_it() -> None:
    mail = TypedMail(
        sender="Shop <shop@x.example>",
        to="ann@a.example, bob@b.example",
        bcc="eve@e.example",
        subject="Order 7",
        text="Thank you",
        headers="X-Campaign: Spring\nnonsense",
        initiator="Checkout",
    )
    assert clause("subject", "contains", "order", mail) == (True, "Order 7")
    assert clause("subject", "is", "order", mail) == (False, "Order 7")
    assert clause("to", "contains", "bob", mail) == (True, "bob@b.example")
    assert clause("to", "does-not-contain", "bob", mail) == (False, "bob@b.example")
    assert clause("to", "is-not", "x", mail) == (True, "ann@a.example")
    assert clause("to", "is", "x", mail) == (False, "ann@a.example, bob@b.example")
    assert clause("cc", "contains", "x", mail) == (False, "")
    assert clause("bcc", "is", "eve@e.example", mail) == (True, "eve@e.example")
    assert clause("from-name", "is", "shop", mail) == (True, "Shop")
    assert clause("message", "starts-with", "thank", mail) == (True, "Thank you")
    assert clause("header-value", "is", "spring", mail) == (True, "Spring")
    assert clause("initiator", "is", "checkout", mail) == (True, "Checkout")


def test_a_line_break_in_a_typed_field_adds_no_header() -> None:
    mail = trial.typed_mail(TypedMail(subject="A\r\nBcc: x@y.example", to="a@b.example"))
    assert mail.facts.subject == "A Bcc: x@y.example"
    assert mail.recipients == ("a@b.example",)


def attempted(session: Session, site: Site, typed: TypedMail) -> Trial:
    here = trial.ground_of(session, site)
    return trial.attempt(session, site, here, trial.typed_mail(typed), a_time())


def test_how_it_would_leave_follows_the_connection_that_was_chosen(
    installation: Installation,
) -> None:
    with installation.db.write() as session:
        site = a_site(session, placeholder_emails=["wordpress@*"])
        primary = a_connection(session, site, nickname="Office", from_email="office@x.example")
        other = a_connection(
            session,
            site,
            primary=False,
            nickname="Brevo",
            from_email="news@x.example",
            force_from_email=False,
        )
        session.add_all(
            Backup(site_id=site.id, position=place, connection_id=one.id)
            for place, one in enumerate((other, primary), start=1)
        )
        save(session, site, Draft(connection=other.uid, groups=one("news")))
        plain = attempted(session, site, TypedMail(sender="Shop <shop@x.example>", subject="Hi"))
        assert plain.leaves is not None
        assert (plain.leaves.connection, plain.leaves.backups) == ("Office", ("Brevo",))
        assert (plain.leaves.from_email, plain.leaves.reason) == (
            "office@x.example",
            FromReason.FORCED,
        )
        assert (plain.leaves.reply_to, plain.leaves.is_reply_to_added) == (
            ("shop@x.example",),
            True,
        )
        news = attempted(session, site, TypedMail(sender="wordpress@x.example", subject="News"))
        assert news.leaves is not None
        assert (news.leaves.connection, news.leaves.backups) == ("Brevo", ("Office",))
        assert (news.leaves.from_email, news.leaves.reason) == (
            "news@x.example",
            FromReason.PLACEHOLDER,
        )
        assert news.leaves.reply_to == ()


def test_a_logged_mail_is_tried_as_it_came_and_only_by_those_who_may_read_it(
    installation: Installation,
) -> None:
    with installation.db.write() as session:
        site, other = a_site(session), a_site(session)
        a_connection(session, site)
        raw = a_mail(subject="Order 7", text="Secret words")
        mail = a_message(session, site, subject="Order 7", raw=raw, from_name="Shop")
        test = a_message(session, site, source=Source.TEST, why={"code": "test"})
        found = trial.logged_mail(session, site, mail.queue_id, may_read=True)
        assert found is not None
        assert found.mail is not None
        assert "Secret words" in found.mail.facts.message
        assert found.mail.recipients == ("kunde@mail.example",)
        hidden = trial.logged_mail(session, site, mail.queue_id, may_read=False)
        assert hidden is not None
        assert hidden.mail is None
        known = trial.typed_mail(hidden.typed).facts
        assert (known.subject, known.from_name, known.message.strip()) == ("Order 7", "Shop", "")
        exempt = trial.logged_mail(session, site, test.queue_id, may_read=True)
        assert exempt is not None
        assert exempt.is_exempt
        assert trial.logged_mail(session, other, mail.queue_id, may_read=True) is None
