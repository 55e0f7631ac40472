"""What is sent to a target: a JSON object for a webhook, a plain mail for an address."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, formataddr, make_msgid
from pathlib import Path
from typing import Any

from babel.support import Translations

from webapp import i18n
from webapp.fields import N_
from webapp.incidents.kinds import Said, say
from webapp.incidents.models import AlertTarget, Incident, Occasion
from webapp.sites.models import Site

TEST_TITLE = N_("A sample: alerts reach you")
TEST_TEXT = N_("Somebody pressed Send a Sample. Nothing is wrong, and nothing has to be done.")
SINCE, OVER, SITES = N_("Since:"), N_("Over:"), N_("Sites:")
WAITING, ANSWER, WHO = N_("Mails that wait:"), N_("Answer:"), N_("Who can put it right:")


@dataclass(frozen=True, kw_only=True)
class Letter:
    """All that a notification tells."""

    occasion: Occasion
    said: Said
    target: AlertTarget
    incident: Incident | None
    sites: Sequence[Site]
    """Those that this target may hear of."""
    url: str
    at: datetime

    @property
    def waiting(self) -> int:
        """Mails that it keeps, of these sites."""
        if self.incident is None:
            return 0
        by_site = self.incident.details.get("waiting", {})
        shown = {str(site.id) for site in self.sites}
        return sum(count for site, count in by_site.items() if site in shown)


def translator(instance: Path, language: str) -> Callable[..., str]:
    """`gettext` of one language, for what leaves without a page."""
    found = Translations.load(i18n.compile_catalogues(instance), [language])

    def translate(sentence: str, **values: object) -> str:
        text: str = found.gettext(sentence)
        return text % values if values else text

    return translate


def letter(
    occasion: Occasion,
    target: AlertTarget,
    incident: Incident | None,
    sites: Sequence[Site],
    translate: Callable[..., str],
    *,
    public_url: str,
    at: datetime,
) -> Letter:
    """What to tell; `sites` are all that the incident concerns, or the one of the target."""
    seen = [site for site in sites if target.site_id in {None, site.id}]
    if incident is None:
        said = Said(title=translate(TEST_TITLE), text=translate(TEST_TEXT), who=(), steps=())
    else:
        said = say(incident, translate, over=occasion is Occasion.CLOSED)
    return Letter(
        occasion=occasion,
        said=said,
        target=target,
        incident=incident,
        sites=seen,
        url=public_url + page_of(target, incident, seen),
        at=at,
    )


def page_of(target: AlertTarget, incident: Incident | None, sites: Sequence[Site]) -> str:
    """The path of the page about it, for whoever gets it."""
    base = f"/sites/{sites[0].slug}" if target.site_id is not None and sites else ""
    if incident is None:
        return f"{base}/settings/alerts" if base else "/settings/system"
    return f"{base}/incidents/{incident.uid}" if base else f"/settings/system/{incident.uid}"


def as_json(told: Letter) -> bytes:
    """The body of a webhook; fields are added in time, and never change their meaning."""
    incident = told.incident
    since = since_of(incident) if incident else told.at
    facts: dict[str, Any] = {
        "id": incident.uid if incident else "",
        "kind": incident.kind if incident else "test",
        "occasion": told.occasion.value,
        "what": told.said.title,
        "text": told.said.text,
        "since": _stamp(since),
        "until": _stamp(incident.closed_at) if incident and incident.closed_at else None,
        "sites": [{"slug": s.slug, "name": s.name, "url": s.url} for s in told.sites],
        "waiting": told.waiting,
        "code": incident.code if incident else "",
        "words": incident.words if incident else "",
        "link": told.url,
    }
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()


def as_mail(told: Letter, sender: str, translate: Callable[..., str]) -> bytes:
    """The source of a mail."""
    mail = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
    mail["From"] = formataddr(("Postroom", sender))
    mail["To"] = told.target.address
    where = told.sites[0].name if len(told.sites) == 1 else "Postroom"
    mail["Subject"] = _line(f"[{where}] {told.said.title}")
    mail["Date"] = format_datetime(told.at)
    mail["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2] or "postroom.invalid")
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(_text(told, translate), cte="quoted-printable")
    return mail.as_bytes()


def since_of(incident: Incident) -> datetime:
    """When it began, which may be before it was noticed."""
    since = incident.details.get("since")
    return datetime.fromisoformat(since) if since else incident.opened_at


def _text(told: Letter, translate: Callable[..., str]) -> str:
    said, incident = told.said, told.incident
    parts = [said.title, said.text]
    if incident is not None:
        facts = [f"{translate(SINCE)} {since_of(incident):%Y-%m-%d %H:%M} UTC"]
        if incident.closed_at is not None:
            facts.append(f"{translate(OVER)} {incident.closed_at:%Y-%m-%d %H:%M} UTC")
        if told.sites:
            names = ", ".join(site.name for site in told.sites)
            facts.append(f"{translate(SITES)} {names}")
        if told.waiting and told.occasion is Occasion.OPENED:
            facts.append(f"{translate(WAITING)} {told.waiting}")
        if told.occasion is Occasion.OPENED and (incident.code or incident.words):
            words = " ".join(filter(None, [incident.code, incident.words]))
            facts.append(f"{translate(ANSWER)} {_line(words)}")
        parts.append("\n".join(facts))
    if said.who:
        parts.append("\n".join([translate(WHO), *said.who]))
    if said.steps:
        steps = (f"{number}. {step}" for number, step in enumerate(said.steps, 1))
        parts.append("\n".join(steps))
    parts.append(told.url)
    return "\n\n".join(parts) + "\n"


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _stamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
