"""The kinds of incident, and what is said of each; sentences are marked, and translated when shown.

A sentence may hold the names in `FALLBACKS`, which come from the details of an incident.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from webapp.explain.match import explain
from webapp.explain.model import WHO_LABELS, Explanation, values_for
from webapp.fields import N_
from webapp.incidents.models import Incident

Translate = Callable[..., str]
"""`gettext`: a marked sentence and the values of its placeholders."""


class Kind(StrEnum):
    """What has happened."""

    LINK = "link-refused"
    REGISTRATION = "registration-refused"
    STOPPED = "connection-stopped"
    UNREACHABLE = "connection-failing"
    FAILED = "mail-failed"
    UNCLEAR = "mail-unclear"
    LEDGER = "ledger-gap"
    DISK = "disk-full"
    SILENT = "site-silent"
    SECRET = "secret-expires"  # noqa: S105
    IDLE = "link-idle"
    ALERTS = "alerts-failing"


SETTLES = timedelta(minutes=10)
"""So long an end must last before it is told, where nobody has to act for it to come and go."""

BY_SOMEBODY = frozenset({Kind.LINK, Kind.REGISTRATION, Kind.STOPPED, Kind.SECRET, Kind.IDLE})
"""Over because a person acted: told at once."""

EXPLAINED = frozenset({Kind.LINK, Kind.REGISTRATION, Kind.STOPPED, Kind.UNREACHABLE, Kind.FAILED})
"""A remote said why, and there is an explanation of it."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """What is said of a kind: while it lasts, and when it is over."""

    title: str
    text: str
    over: str
    over_text: str
    steps: tuple[str, ...] = ()


STORIES: Mapping[Kind, Story] = {
    Kind.LINK: Story(
        title=N_("%(account)s needs re-authorization"),
        text=N_(
            "%(provider)s no longer lets Postroom send as %(account)s. Its mail is kept and "
            "nothing fails; it leaves in order once the account is linked again."
        ),
        over=N_("%(account)s may send again"),
        over_text=N_("It was linked again, or is no longer used. What waited for it goes on."),
    ),
    Kind.REGISTRATION: Story(
        title=N_("%(provider)s refuses the app registration %(app)s"),
        text=N_(
            "No mailbox that is linked by it can send. Its mail is kept and nothing fails; it "
            "leaves in order once the registration works. Linking again does not help."
        ),
        over=N_("%(provider)s accepts the app registration %(app)s again"),
        over_text=N_("What waited for it goes on. No site has to be linked again."),
    ),
    Kind.STOPPED: Story(
        title=N_("%(place)s refuses this login or these settings"),
        text=N_(
            "Mail for %(place)s is kept and nothing fails; it leaves in order once the settings "
            "of the connection were put right and saved."
        ),
        over=N_("Mail leaves by %(place)s again"),
        over_text=N_("The settings were saved. What waited for it goes on."),
    ),
    Kind.UNREACHABLE: Story(
        title=N_("%(place)s has taken no mail for 15 minutes"),
        text=N_("Mail for it waits and is tried again, for as long as the site allows."),
        over=N_("%(place)s takes mail again"),
        over_text=N_("What waited for it goes on."),
    ),
    Kind.FAILED: Story(
        title=N_("Mail of %(site)s has failed"),
        text=N_(
            "Mail was given up for the same reason: %(count)s within an hour. It is not tried "
            "again by itself; the log can send it again once the cause is gone."
        ),
        over=N_("No more mail of %(site)s has failed"),
        over_text=N_(
            "A later mail went out, or none has failed for an hour. What had failed can be sent "
            "again from the log."
        ),
    ),
    Kind.UNCLEAR: Story(
        title=N_("Mail of %(site)s may not have gone out"),
        text=N_(
            "The answer was lost after the whole mail had been handed over: %(count)s within an "
            "hour. Nobody can know whether it arrived. It is not sent again by itself."
        ),
        over=N_("No more mail of %(site)s has become unclear"),
        over_text=N_("None did for an hour. Those before stay marked as Unclear in the log."),
        steps=(
            N_("Open the log and look at the mail marked as Unclear."),
            N_("Ask the recipient, or look into Sent Items; then send it again, or leave it."),
        ),
    ),
    Kind.LEDGER: Story(
        title=N_("The books of %(site)s do not add up"),
        text=N_(
            "%(accepted)s mails were accepted, but %(ended)s have ended and %(open)s are open: a "
            "difference of %(gap)s. This must never be, and is an error of Postroom or of the "
            "database."
        ),
        over=N_("The books of %(site)s add up again"),
        over_text=N_("Every mail is accounted for."),
        steps=(
            N_("Keep the database as it is, and make a backup of it."),
            N_("Run postroom doctor, and report what it says."),
        ),
    ),
    Kind.DISK: Story(
        title=N_("The disk is nearly full"),
        text=N_(
            "%(free)s MB are free where the data lies, and a reserve of %(reserve)s MB is kept. "
            "New mail is refused for the moment, so the sites keep it; nothing is lost."
        ),
        over=N_("There is room on the disk again"),
        over_text=N_("New mail is accepted."),
        steps=(N_("Make room on the disk of this machine, or move the data to a larger one."),),
    ),
    Kind.SILENT: Story(
        title=N_("%(site)s has handed in no mail for %(hours)s hours"),
        text=N_(
            "That is longer than its settings allow. It may have stopped sending, or it cannot "
            "reach Postroom."
        ),
        over=N_("%(site)s hands in mail again"),
        over_text=N_("Mail came in, or the site is no longer watched."),
        steps=(
            N_("Let the site send a mail, for example by resetting a password."),
            N_("Look at the mail settings and the error log of the site."),
            N_("Check that its login was not revoked."),
        ),
    ),
    Kind.SECRET: Story(
        title=N_("The secret of %(app)s expires on %(day)s"),
        text=N_(
            "From then on Microsoft refuses the app registration, and no mailbox that is linked "
            "by it can send. A new secret can be put in before, without one held mail."
        ),
        over=N_("The secret of %(app)s was renewed"),
        over_text=N_("A later date is saved, or the registration is no longer used."),
        steps=(
            N_("Make a new client secret at Microsoft, on the page Certificates & secrets."),
            N_("Paste it into Postroom together with its date. No site has to be linked again."),
        ),
    ),
    Kind.IDLE: Story(
        title=N_("The link of %(account)s is close to its end"),
        text=N_(
            "It could not be renewed for more than 60 days. %(provider)s ends a link that was not "
            "renewed for %(idle)s days."
        ),
        over=N_("The link of %(account)s was renewed"),
        over_text=N_("It was renewed or linked again, or it is no longer used."),
        steps=(N_("Link the account again on the settings of the connection."),),
    ),
    Kind.ALERTS: Story(
        title=N_("Alerts cannot leave by email"),
        text=N_("The alert connection of this installation fails. Only webhooks are told."),
        over=N_("Alerts leave by email again"),
        over_text=N_("A mail went out by the alert connection, or it was saved or linked again."),
        steps=(
            N_("Open System, correct the alert connection or link it again, and send a sample."),
        ),
    ),
}

CARRIED = N_(
    "Meanwhile a backup connection carries the mail of every site that has one; what no backup may "
    "take waits."
)

FALLBACKS: Mapping[str, str] = {
    "account": N_("the linked account"),
    "app": N_("your app"),
    "place": N_("the mail server"),
    "site": N_("the site"),
}


@dataclass(frozen=True, kw_only=True)
class Said:
    """An incident in words of one language."""

    title: str
    text: str
    who: tuple[str, ...]
    """Who can put it right, each with what they do."""
    steps: tuple[str, ...]


def explanation(incident: Incident) -> Explanation | None:
    """Why, where a remote said so."""
    if incident.kind not in EXPLAINED:
        return None
    details = incident.details
    return explain(
        mailer=str(details.get("mailer", "")),
        code=incident.code,
        words=incident.words,
        cause=str(details.get("cause", "")),
    )


def say(incident: Incident, translate: Translate, *, over: bool) -> Said:
    """What is told of it: that it began, or that it is over."""
    story = STORIES[Kind(incident.kind)]
    values = _values(incident.details, translate)
    if over:
        return Said(
            title=translate(story.over, **values),
            text=translate(story.over_text, **values),
            who=(),
            steps=(),
        )
    text = translate(story.text, **values)
    if incident.details.get("carried"):
        text = f"{text} {translate(CARRIED)}"
    who: tuple[str, ...] = ()
    steps = tuple(translate(step) for step in story.steps)
    found = explanation(incident)
    if found is not None:
        known = values_for(incident.details, translate)
        text = f"{text} {translate(found.cause, **known)}"
        who = tuple(
            f"{translate(WHO_LABELS[part.who])} {translate(part.sentence, **known)}"
            for part in found.who
            if part.on
        )
        steps = tuple(translate(step.text, **known) for step in found.steps)
    return Said(title=translate(story.title, **values), text=text, who=who, steps=steps)


def _values(details: Mapping[str, Any], translate: Translate) -> dict[str, object]:
    names = ("count", "accepted", "ended", "open", "gap", "free", "reserve", "hours", "day")
    values: dict[str, object] = {name: details.get(name, "") for name in names}
    for name, fallback in FALLBACKS.items():
        values[name] = details.get(name) or translate(fallback)
    # Incidents of before there was another one say nothing of it.
    values |= {"provider": details.get("provider", "Microsoft"), "idle": details.get("idle", 90)}
    return values
