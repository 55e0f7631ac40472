"""The verbs on sites and on the credentials by which they hand in mail."""

import hashlib
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from email_validator import EmailNotValidError, validate_email
from sqlalchemy.orm import Session

from webapp import audit, ids
from webapp.fields import N_, FieldErrors
from webapp.sites.models import AfterUnclear, Credential, CredentialKind, Mode, Site

SLUG_LENGTH = 60
NAME_LENGTH = 200
URL_LENGTH = 500
LABEL_LENGTH = 100
MOST_PATTERNS = 100
SCOPES = ("send", "read", "manage")
"""What a key of the API may be allowed; the first of them unless others are named."""

PLACEHOLDER_NAMES = ("WordPress",)
TAKEN_SLUGS = frozenset({"new"})
"""Words that have an address of their own under /sites/."""

_SPELLED_OUT = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "æ": "ae", "ø": "oe", "å": "aa", "œ": "oe"}
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", re.IGNORECASE)

INVISIBLE = N_("Take out the invisible characters.")
NO_EMAIL = N_("Enter an email address, such as name@example.org.")


@dataclass(frozen=True, kw_only=True)
class NewCredential:
    """A credential with its secret, which exists nowhere else and is shown once."""

    credential: Credential
    secret: str

    @property
    def key(self) -> str:
        """The whole API key."""
        return f"{self.credential.username}.{self.secret}"


# ---- sites ----


def create_site(
    session: Session, *, name: str, url: str = "", admin_email: str = "", actor: str, now: datetime
) -> Site:
    """Add a site that sends live; raises FieldErrors for `name`, `url` or `admin_email`."""
    name, url, admin_email = _checked_site(name, url, admin_email)
    site = Site(
        slug=_free_slug(session, _slug_base(name, url)),
        name=name,
        url=url,
        admin_email=admin_email,
        mode=Mode.LIVE,
        placeholder_emails=placeholder_emails(url),
        placeholder_names=list(PLACEHOLDER_NAMES),
        created_at=now,
    )
    session.add(site)
    session.flush()
    changes = audit.difference({}, _shown_site(site))
    _record(session, site, "site created", "site", site.id, now, actor, changes)
    return site


def find_site(session: Session, slug: str) -> Site | None:
    """The site with this slug; one that is being deleted is not there any more."""
    return session.scalar(sa.select(Site).where(Site.slug == slug, Site.deleted_at.is_(None)))


def all_sites(session: Session) -> list[Site]:
    """Every site, by name."""
    query = sa.select(Site).where(Site.deleted_at.is_(None))
    return list(session.scalars(query.order_by(sa.func.lower(Site.name), Site.id)))


NO_SLUG = "-"
"""How the slug of a site begins whose mail is gone, too; no other slug begins so."""


def ids_beside_deleted(session: Session) -> list[int] | None:
    """The sites that are there, while mail of a deleted one is still being purged; else None: a
    query over all mail need not name them.
    """
    going = sa.exists().where(
        Site.deleted_at.is_not(None), sa.not_(Site.slug.startswith(NO_SLUG, autoescape=True))
    )
    if not session.scalar(sa.select(going)):
        return None
    return list(session.scalars(sa.select(Site.id).where(Site.deleted_at.is_(None))))


def placeholder_emails(url: str) -> list[str]:
    """Senders that programs of this site use when nobody told them one."""
    domain = host_of(url).removeprefix("www.")
    return [f"wordpress@{domain or '*'}", "www-data@*"]


def host_of(url: str) -> str:
    """The host name of an address, in lower case; empty when there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def check_email(text: str) -> str:
    """An address as it is stored; raises ValueError with the sentence to show.

    Names of private networks count (`post@server.local`), a name without a dot does not.
    """
    text = text.strip()
    try:
        found = validate_email(text, check_deliverability=False, globally_deliverable=False)
    except EmailNotValidError as error:
        raise ValueError(NO_EMAIL) from error
    if "." not in found.domain:
        raise ValueError(NO_EMAIL)
    return found.normalized


def check_line(text: str, length: int) -> str:
    """One line of text as it is stored; raises ValueError with the sentence to show."""
    text = text.strip()
    if _CONTROL.search(text):
        raise ValueError(INVISIBLE)
    if len(text) > length:
        raise ValueError(N_("Make it shorter."))
    return text


def _checked_site(name: str, url: str, admin_email: str) -> tuple[str, str, str]:
    errors: dict[str, str] = {}
    values = {"name": name, "url": url, "admin_email": admin_email}
    checks = {"name": check_name, "url": check_url, "admin_email": check_admin_email}
    for field, check in checks.items():
        try:
            values[field] = check(values[field])
        except ValueError as error:
            errors[field] = str(error)
    if errors:
        raise FieldErrors(errors)
    return values["name"], values["url"], values["admin_email"]


def check_name(name: str) -> str:
    """What a site is called; raises ValueError with the sentence to show."""
    name = check_line(name, NAME_LENGTH)
    if not name:
        raise ValueError(N_("Give the site a name."))
    return name


def check_url(url: str) -> str:
    """Where a site is found, or nothing; raises ValueError with the sentence to show."""
    url = check_line(url, URL_LENGTH)
    if not url:
        return ""
    sentence = N_("Enter the whole address, such as https://www.example.org.")
    if any(character.isspace() for character in url):
        raise ValueError(sentence)
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        _ = parts.port  # raises for a port that is none
    except ValueError as error:  # UnicodeError too
        raise ValueError(sentence) from error
    is_v6 = ":" in host
    if parts.scheme not in {"http", "https"} or not (is_v6 or _HOST.fullmatch(host)):
        raise ValueError(sentence)
    if parts.username or parts.password:
        raise ValueError(N_("Take the login out of the address."))
    return url


def check_admin_email(text: str) -> str:
    """An address or nothing; raises ValueError with the sentence to show."""
    return check_email(text) if text.strip() else ""


def _shown_site(site: Site) -> dict[str, object]:
    return {
        "name": site.name,
        "url": site.url,
        "admin_email": site.admin_email,
        "mode": str(site.mode),
        "after_unclear": str(site.after_unclear or AfterUnclear.RATHER_TWICE),
        "placeholder_emails": list(site.placeholder_emails),
    }


def slug_of(text: str) -> str:
    """Text in lower-case ASCII words joined by hyphens; empty when it holds none."""
    spelled = text.lower().translate(_SPELLED_OUT)
    plain = unicodedata.normalize("NFKD", spelled).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _slug_base(name: str, url: str) -> str:
    """From the name; where that has no ASCII letter, from the address; else anything short."""
    slug = slug_of(name)
    if not re.search(r"[a-z]", slug):
        slug = slug_of(host_of(url).removeprefix("www.")) or f"site-{ids.short_id()[:4]}"
    return slug[: SLUG_LENGTH - 5].rstrip("-")


def _free_slug(session: Session, base: str) -> str:
    taken = set(session.scalars(sa.select(Site.slug).where(Site.slug.startswith(base))))
    taken |= TAKEN_SLUGS
    slug, number = base, 1
    while slug in taken:
        number += 1
        slug = f"{base}-{number}"
    return slug


# ---- credentials ----


def create_credential(
    session: Session,
    site: Site,
    *,
    kind: CredentialKind,
    label: str = "",
    senders: Iterable[str] = (),
    networks: Iterable[str] = (),
    scopes: Iterable[str] = (),
    actor: str,
    now: datetime,
) -> NewCredential:
    """Make a login or a key; raises FieldErrors for `label`, `senders`, `networks` or `scopes`.

    A key may only send, unless its scopes are named; a login has none.
    """
    label, allowed, places = _checked_credential(label, senders, networks)
    granted = _checked_scopes(kind, scopes)
    secret = ids.secret()
    credential = Credential(
        site_id=site.id,
        kind=kind,
        label=label,
        username=_free_username(session, site, kind),
        digest=digest(secret),
        scopes=granted,
        senders=allowed,
        networks=places,
        created_at=now,
        created_by=actor[:320],
    )
    session.add(credential)
    session.flush()
    changes = {
        "username": [None, credential.username],
        "kind": [None, str(kind)],
        "label": [None, label],
        "senders": [None, allowed],
        "networks": [None, places],
        "scopes": [None, granted],
        "secret": "changed",
    }
    _record(session, site, "credential created", "credential", credential.id, now, actor, changes)
    return NewCredential(credential=credential, secret=secret)


def revoke_credential(
    session: Session, site: Site, credential: Credential, *, actor: str, now: datetime
) -> None:
    """Take a login or a key away for good; nothing happens when that was done before."""
    if credential.revoked_at is not None:
        return
    credential.revoked_at = now
    changes = {"username": credential.username, "revoked_at": [None, now.isoformat()]}
    _record(session, site, "credential revoked", "credential", credential.id, now, actor, changes)


def credentials_of(session: Session, site_id: int, *, kind: CredentialKind) -> list[Credential]:
    """The credentials of a site that still count, the oldest first."""
    query = (
        sa.select(Credential)
        .where(
            Credential.site_id == site_id,
            Credential.kind == kind,
            Credential.revoked_at.is_(None),
        )
        .order_by(Credential.id)
    )
    return list(session.scalars(query))


def find_credential(session: Session, site_id: int, credential_id: int) -> Credential | None:
    """A credential of this site and of no other one."""
    return session.scalar(
        sa.select(Credential).where(Credential.id == credential_id, Credential.site_id == site_id)
    )


def find_by_username(session: Session, username: str) -> tuple[Credential, Site] | None:
    """The credential with this public name, and its site."""
    row = session.execute(
        sa.select(Credential, Site)
        .join(Site, Site.id == Credential.site_id)
        .where(Credential.username == username, Site.deleted_at.is_(None))
    ).first()
    return (row[0], row[1]) if row else None


def digest(secret: str) -> str:
    """What is kept of a secret; it is random, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _free_username(session: Session, site: Site, kind: CredentialKind) -> str:
    """`<slug>-<4 characters>` for a login, `pk_<10 characters>` for a key."""
    while True:
        if kind == CredentialKind.API:
            username = f"pk_{ids.short_id()}"
        else:
            username = f"{site.slug}-{ids.short_id()[:4]}"
        taken = sa.select(Credential.id).where(Credential.username == username)
        if session.scalar(taken) is None:
            return username


def _checked_credential(
    label: str, senders: Iterable[str], networks: Iterable[str]
) -> tuple[str, list[str], list[str]]:
    errors: dict[str, str] = {}
    allowed: list[str] = []
    places: list[str] = []
    try:
        label = check_line(label, LABEL_LENGTH)
    except ValueError as error:
        errors["label"] = str(error)
    try:
        allowed = _each(senders, check_sender)
    except ValueError as error:
        errors["senders"] = str(error)
    try:
        places = _each(networks, check_network)
    except ValueError as error:
        errors["networks"] = str(error)
    if errors:
        raise FieldErrors(errors)
    return label, allowed, places


def _checked_scopes(kind: CredentialKind, scopes: Iterable[str]) -> list[str]:
    if kind != CredentialKind.API:
        return []
    wanted = set(scopes) or {SCOPES[0]}
    if wanted - set(SCOPES):
        raise FieldErrors({"scopes": N_("Choose among send, read and manage.")})
    return [scope for scope in SCOPES if scope in wanted]


def _each(texts: Iterable[str], check: Callable[[str], str]) -> list[str]:
    given = [text.strip() for text in texts if text.strip()]
    if len(given) > MOST_PATTERNS:
        raise ValueError(N_("These are too many: enter at most 100."))
    return list(dict.fromkeys(check(text) for text in given))


def check_sender(text: str) -> str:
    """An address or `*@domain`, in lower case; raises ValueError with the sentence to show."""
    sentence = N_("Write each sender as name@example.org, or *@example.org for a whole domain.")
    local, at, domain = text.strip().lower().rpartition("@")
    try:
        address = check_email(f"{'any' if local == '*' else local}{at}{domain}")
    except ValueError as error:
        raise ValueError(sentence) from error
    if any(character in address for character in "*?["):  # they would count as patterns
        raise ValueError(sentence)
    return f"*@{address.rpartition('@')[2]}" if local == "*" else address.lower()


def check_network(text: str) -> str:
    """A network in its usual form; raises ValueError with the sentence to show."""
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError as error:
        sentence = N_("Write each network as 203.0.113.7 or 203.0.113.0/24.")
        raise ValueError(sentence) from error


def _record(
    session: Session,
    site: Site,
    action: str,
    kind: str,
    object_id: int,
    now: datetime,
    actor: str,
    changes: dict[str, Any],
) -> None:
    audit.record(
        session,
        at=now,
        actor=actor,
        action=action,
        object_kind=kind,
        object_id=object_id,
        site_id=site.id,
        changes=changes,
    )
