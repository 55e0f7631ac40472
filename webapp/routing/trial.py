"""What would become of a mail: which rule decides and by which clause, and how it would leave.

Nothing is stored and nothing is sent. What is decided comes from `service.plan`, and the bytes that
would leave from `mime.outgoing.compose`: the same that decide about real mail.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp.connections.models import Connection
from webapp.connections.uses import chain_ids
from webapp.delivery.content import stored_mail
from webapp.delivery.models import Message, Source
from webapp.delivery.planning import Letters, waiting
from webapp.mailers import registry
from webapp.maillog.service import connection_name
from webapp.mime.headers import clean, parse_addresses, split
from webapp.mime.outgoing import compose
from webapp.mime.sender import FromBlock, FromReason, Placeholders
from webapp.routing.conditions import (
    Condition,
    MailFacts,
    Operator,
    Property,
    facts_for_rules,
    meets,
)
from webapp.routing.models import Action, RuleKind
from webapp.routing.rules import Draft, Target, rules_of, targets_of
from webapp.routing.service import (
    Plan,
    RuleRow,
    Rules,
    SiteRoute,
    Why,
    plan,
    rules_from,
    site_route,
)
from webapp.sites.models import Site

SHOWN_VALUES = 3
SHOWN = 200
AFFIRMATIVE = {
    Operator.DOES_NOT_CONTAIN: Operator.CONTAINS,
    Operator.IS_NOT: Operator.IS,
}


class Verdict(StrEnum):
    """What a rule says of the mail."""

    DECIDES = "decides"
    NOT_MET = "not-met"
    NO_CONDITION = "no-condition"
    NO_CONNECTION = "no-connection"
    """What it leads to was deleted, or cannot send yet."""
    NOT_REACHED = "not-reached"


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One condition against the mail. `value` is what met it, or what there was instead."""

    condition: Condition
    is_met: bool
    value: str
    others: int = 0
    """So many values more there were."""


@dataclass(frozen=True, kw_only=True)
class TriedRule:
    """One rule against the mail. Without `groups` nobody had to look."""

    number: int
    name: str
    verdict: Verdict
    groups: tuple[tuple[Clause, ...], ...] = ()
    group: int | None = None
    """The group that was met, from 0."""
    target: str = ""
    """The name of the connection, or the action."""


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """How it would leave, and by what."""

    connection: str
    backups: tuple[str, ...]
    from_email: str
    from_name: str
    asked_email: str
    reason: FromReason
    reply_to: tuple[str, ...]
    is_reply_to_added: bool
    is_name_ours: bool
    """False where the service uses the name of the account."""
    to: str
    """Who gets it instead, in mode redirect-to."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The whole verdict."""

    plan: Plan
    facts: MailFacts
    controls: tuple[TriedRule, ...]
    routes: tuple[TriedRule, ...]
    is_routing_on: bool
    looks_at_routes: bool
    leaves: Leaves | None


@dataclass(frozen=True, kw_only=True)
class Mail:
    """What is tried: the source, to whom, and who handed it in."""

    raw: bytes
    recipients: tuple[str, ...]
    facts: MailFacts


@dataclass(frozen=True, kw_only=True)
class TypedMail:
    """A mail as somebody describes it."""

    sender: str = ""
    to: str = ""
    cc: str = ""
    bcc: str = ""
    reply_to: str = ""
    subject: str = ""
    text: str = ""
    headers: str = ""
    """One `Name: value` a line."""
    initiator: str = ""


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A mail of the log. Where its content is not there, or must not be read, `typed` has what the
    log knows."""

    queue_id: str
    subject: str
    is_exempt: bool
    """It was a test, or asked for its connection: rules did not decide about it."""
    mail: Mail | None
    typed: TypedMail


# ---- a mail to try ----


def typed_mail(typed: TypedMail) -> Mail:
    """The mail that somebody described."""
    lines = [
        *_fields(
            ("From", typed.sender),
            ("To", typed.to),
            ("Cc", typed.cc),
            ("Bcc", typed.bcc),
            ("Reply-To", typed.reply_to),
            ("Subject", typed.subject),
        ),
        *_own_fields(typed.headers),
    ]
    if not any(line.lower().startswith("content-type:") for line in lines):
        lines.append("Content-Type: text/plain; charset=utf-8")
    raw = "\r\n".join((*lines, "", typed.text)).encode("utf-8", "replace")
    everybody = parse_addresses(", ".join(filter(None, (typed.to, typed.cc, typed.bcc))))
    recipients = tuple(dict.fromkeys(address.email for address in everybody if address.email))
    facts = facts_for_rules(raw, recipients, typed.initiator.strip())
    return Mail(raw=raw, recipients=recipients, facts=facts)


def _fields(*pairs: tuple[str, str]) -> Iterator[str]:
    for name, value in pairs:
        if value.strip():
            yield f"{name}: {clean(value).strip()}"


def _own_fields(text: str) -> Iterator[str]:
    """Lines that can be header fields; others are left out."""
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() and not any(char.isspace() for char in name.strip()):
            yield f"{name.strip()}: {clean(value).strip()}"


def logged_mail(session: Session, site: Site, queue_id: str, *, may_read: bool) -> Logged | None:
    """A mail of the site's log; None when there is no such one."""
    found = session.scalar(
        sa.select(Message).where(Message.queue_id == queue_id, Message.site_id == site.id)
    )
    if found is None:
        return None
    raw = stored_mail(session, found.id) if may_read else None
    return Logged(
        queue_id=found.queue_id,
        subject=found.subject,
        is_exempt=found.source in {Source.TEST, Source.RESEND}
        or found.why.get("code") in {Why.ASKED, Why.TEST},
        mail=None if raw is None else _as_handed_in(session, found, raw),
        typed=TypedMail(
            sender=f'"{found.from_name}" <{found.from_email}>'
            if found.from_name
            else found.from_email,
            to=found.to_line,
            subject=found.subject,
        ),
    )


def _as_handed_in(session: Session, message: Message, raw: bytes) -> Mail:
    connection = session.connection()
    mails = waiting(connection, Message.id == message.id, most=1)
    facts = Letters(connection, mails).facts(mails[0])
    recipients = tuple(dict.fromkeys((*facts.to, *facts.cc, *facts.bcc)))
    return Mail(raw=raw, recipients=recipients, facts=facts)


# ---- the verdict ----


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A site with the rules to try."""

    site: SiteRoute
    controls: tuple[Draft, ...]
    routes: tuple[Draft, ...]
    is_routing_on: bool
    targets: Mapping[str, Target] = field(default_factory=dict)
    """By their uid."""


def ground_of(
    session: Session,
    site: Site,
    *,
    unsaved: tuple[RuleKind, Sequence[Draft]] | None = None,
    enabled: bool | None = None,
) -> Ground:
    """A site with its stored rules; `unsaved` takes the place of those of a kind."""
    drafts = {kind: tuple(rules_of(session, site, kind)) for kind in RuleKind}
    if unsaved is not None:
        drafts[unsaved[0]] = tuple(unsaved[1])
    is_on = site.routing_enabled if enabled is None else enabled
    stored = site_route(session.connection(), site.id)
    assert stored is not None
    targets = {one.uid: one for one in targets_of(session, site)}
    return Ground(
        site=replace(
            stored, lanes=_lanes(session, targets.values()), rules=_rules(drafts, targets, is_on)
        ),
        controls=drafts[RuleKind.CONTROL],
        routes=drafts[RuleKind.ROUTE],
        is_routing_on=is_on,
        targets=targets,
    )


def _lanes(session: Session, targets: Iterable[Target]) -> dict[int, int]:
    keys = sorted(target.id for target in targets if not target.is_gone)
    rows = session.execute(
        sa.select(Connection.id, Connection.lane_id).where(
            Connection.id.in_(keys), Connection.lane_id.is_not(None)
        )
    )
    return {row.id: row.lane_id for row in rows}


def _rules(
    drafts: Mapping[RuleKind, Sequence[Draft]], targets: Mapping[str, Target], is_on: bool
) -> Rules:
    rows: list[RuleRow] = []
    for kind, of_kind in drafts.items():
        for number, draft in enumerate(of_kind, start=1):
            target = targets.get(draft.connection)
            groups = [list(group) for group in draft.groups]
            # The number stands for the uid: a rule that is not stored has none.
            rows.append(
                (kind, str(number), draft.name, target.id if target else None, draft.action, groups)
            )
    return rules_from(rows, routing_enabled=is_on)


def attempt(session: Session, site: Site, ground: Ground, mail: Mail, now: datetime) -> Trial:
    """What would become of a mail if it were handed in now."""
    decided = plan(ground.site, lambda: mail.facts)
    looks_at_routes = not decided.blocked
    return Trial(
        plan=decided,
        facts=mail.facts,
        controls=tuple(tried_controls(ground, mail.facts)),
        routes=tuple(tried_routes(ground, mail.facts)) if looks_at_routes else (),
        is_routing_on=ground.is_routing_on,
        looks_at_routes=looks_at_routes,
        leaves=_leaves(session, site, decided, mail, now),
    )


def tried_controls(ground: Ground, facts: MailFacts) -> Iterator[TriedRule]:
    """Each control against the mail, until one decides. Pure."""
    yield from _tried(
        ground.controls,
        facts,
        [(draft.action, draft.action in set(Action)) for draft in ground.controls],
    )


def tried_routes(ground: Ground, facts: MailFacts) -> Iterator[TriedRule]:
    """Each route against the mail, until one decides; none where routing is off. Pure."""
    if not ground.is_routing_on:
        return
    led = []
    for draft in ground.routes:
        target = ground.targets.get(draft.connection)
        led.append((target.name, target.id in ground.site.lanes) if target else ("", False))
    yield from _tried(ground.routes, facts, led)


def _tried(
    drafts: Sequence[Draft], facts: MailFacts, led: Sequence[tuple[str, bool]]
) -> Iterator[TriedRule]:
    decided = False
    for number, (draft, (target, leads)) in enumerate(zip(drafts, led, strict=True), start=1):
        groups = draft.conditions
        match = None
        looked: tuple[tuple[Clause, ...], ...] = ()
        if decided:
            verdict = Verdict.NOT_REACHED
        elif not groups:
            verdict = Verdict.NO_CONDITION
        elif not leads:
            verdict = Verdict.NO_CONNECTION
        else:
            match = meets(groups, facts)
            decided = match is not None
            verdict = Verdict.DECIDES if decided else Verdict.NOT_MET
            looked = tuple(tuple(clause_of(each, facts) for each in group) for group in groups)
        yield TriedRule(
            number=number,
            name=draft.name,
            verdict=verdict,
            groups=looked,
            group=match.group if match else None,
            target=target,
        )


def clause_of(condition: Condition, facts: MailFacts) -> Clause:
    """One condition against a mail: met or not, and by which value. Pure."""
    values = facts.values(condition.property)
    match = meets(((condition,),), facts)
    if match is not None:
        return Clause(condition=condition, is_met=True, value=match.values[0].strip())
    opposite = AFFIRMATIVE.get(condition.operator)
    if opposite is not None:
        hit = meets(((replace(condition, operator=opposite),),), facts)
        return Clause(condition=condition, is_met=False, value=hit.values[0].strip() if hit else "")
    shown = ", ".join(value.strip() for value in values[:SHOWN_VALUES])
    return Clause(
        condition=condition,
        is_met=False,
        value=shown if len(shown) <= SHOWN else shown[:SHOWN] + "…",
        others=max(0, len(values) - SHOWN_VALUES),
    )


def asks_for_content(drafts: Sequence[Draft]) -> bool:
    """Whether a rule looks at what the log does not keep by itself."""
    known = {Property.SUBJECT, Property.FROM_EMAIL, Property.FROM_NAME, Property.TO}
    return any(
        each.property not in known
        for draft in drafts
        for group in draft.conditions
        for each in group
    )


# ---- how it would leave ----


def _leaves(
    session: Session, site: Site, decided: Plan, mail: Mail, now: datetime
) -> Leaves | None:
    if decided.blocked or decided.connection_id is None:
        return None
    connection = session.get_one(Connection, decided.connection_id)
    outgoing = compose(
        mail.raw[: split(mail.raw).body_at],  # only the headers are of interest
        queue_id="",
        hostname="localhost",
        received_from="",
        received_with="",
        received_at=now,
        mail_from=mail.facts.from_email,
        recipients=mail.recipients,
        block=FromBlock(
            email=connection.from_email,
            force_email=connection.force_from_email,
            name=connection.from_name,
            force_name=connection.force_from_name,
            return_path=connection.return_path,
        ),
        placeholders=Placeholders(
            emails=tuple(site.placeholder_emails), names=tuple(site.placeholder_names)
        ),
    )
    added = outgoing.reply_to_added
    kind = registry().get(connection.mailer)
    return Leaves(
        connection=connection_name(connection.nickname, connection.mailer),
        backups=_backups(session, site, connection.id),
        from_email=outgoing.from_email,
        from_name=outgoing.from_name,
        asked_email=mail.facts.from_email,
        reason=outgoing.decision.reason,
        reply_to=(added,) if added else mail.facts.reply_to,
        is_reply_to_added=bool(added),
        is_name_ours=kind is None or kind.names_sender,
        to=decided.redirect_to,
    )


def _backups(session: Session, site: Site, planned: int) -> tuple[str, ...]:
    keys = [key for key in chain_ids(session, site) if key != planned]
    rows = session.execute(
        sa.select(Connection.id, Connection.nickname, Connection.mailer).where(
            Connection.id.in_(keys)
        )
    )
    names = {row.id: connection_name(row.nickname, row.mailer) for row in rows}
    return tuple(names[key] for key in keys)
