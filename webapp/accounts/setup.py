"""The first account: a link that works once, made while nobody can sign in."""

import hashlib
import secrets
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from webapp.accounts.service import has_users
from webapp.delivery.models import Setting
from webapp.installation import Installation

SETUP_TOKEN = "setup_token"  # noqa: S105  (the name of a setting, not a secret)
LASTS = timedelta(hours=24)


def setup_link(installation: Installation) -> str | None:
    """A link for the first account, valid for 24 hours; None once there is an account.

    It replaces any link made before.
    """
    now = installation.db.now()
    token = secrets.token_urlsafe(24)
    with installation.db.write() as session:
        if has_users(session):
            return None
        session.merge(
            Setting(
                name=SETUP_TOKEN,
                value={"digest": _digest(token), "until": (now + LASTS).isoformat()},
            )
        )
    return f"{installation.settings.url}/setup?token={token}"


def fits(session: Session, token: str, now: datetime) -> bool:
    """Whether this token may make the first account now."""
    stored = session.get(Setting, SETUP_TOKEN)
    if not token or stored is None or has_users(session):
        return False
    same = secrets.compare_digest(stored.value["digest"], _digest(token))
    return same and now < datetime.fromisoformat(stored.value["until"])


def use(session: Session, token: str, now: datetime) -> bool:
    """Use the token up, in the unit of work that makes the account; False when it does not fit."""
    if not fits(session, token, now):
        return False
    session.delete(session.get_one(Setting, SETUP_TOKEN))
    return True


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
