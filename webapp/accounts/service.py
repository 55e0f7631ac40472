"""The verbs on people: make an account, sign in and out, slow down guessing.

Hashing a password takes a tenth of a second on purpose. Call `check_password` and `hash_password`
outside a unit of work that writes, so that nobody waits for it.
"""

import hashlib
import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from webapp import audit
from webapp.accounts.models import Throttle, User, UserSession
from webapp.fields import N_

hasher = PasswordHasher()
"""Looked up at each use, so that tests may put a cheap one in its place."""

SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 1000
SESSION_LASTS = timedelta(days=30)
"""After the last time the session was seen."""

SEEN_EVERY = timedelta(minutes=1)
FORGET_AFTER = timedelta(days=1)
LONGEST_DELAY = timedelta(minutes=5)
FREE_FAILURES = {"login": 3, "address": 10}
"""Failures before waiting begins; behind one address there may be many people."""


class AccountError(ValueError):
    """An account that cannot be made or changed so; the text is a sentence, marked for
    translation, and `field` names what it is about."""

    field = ""


class EmailInvalid(AccountError):
    """This is not an address."""

    field = "email"


class EmailTaken(AccountError):
    """Somebody has this address already."""

    field = "email"


class PasswordTooShort(AccountError):
    """The password is too easy to guess."""

    field = "password"


class PasswordTooLong(AccountError):
    """The password is longer than we are willing to hash."""

    field = "password"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A valid session and whose it is."""

    user: User
    session: UserSession


def normal_email(text: str) -> str:
    """The address as it is stored and looked up; raises EmailInvalid."""
    email = text.strip().lower()
    local, at, domain = email.rpartition("@")
    if not at or not local or not domain or len(email) > 320 or any(c.isspace() for c in email):
        raise EmailInvalid(N_("Enter an email address, such as name@example.org."))
    return email


def check_new_password(password: str) -> None:
    """Raise PasswordTooShort or PasswordTooLong."""
    if len(password) < SHORTEST_PASSWORD:
        raise PasswordTooShort(N_("Use at least 12 characters: four words are easy to remember."))
    if len(password) > LONGEST_PASSWORD:
        raise PasswordTooLong(N_("Use at most 1,000 characters."))


def hash_password(password: str) -> str:
    """The hash to store; takes long. Raises PasswordTooShort or PasswordTooLong."""
    check_new_password(password)
    return hasher.hash(password)


def check_password(user: User | None, password: str) -> bool:
    """Whether this is the person's password. The work is the same when there is no such person."""
    stored = user.password_hash if user else _nobody(hasher)
    try:
        hasher.verify(stored, password[:LONGEST_PASSWORD])
    except (VerificationError, InvalidHashError):
        return False
    return user is not None


def rehash(user: User, password: str) -> str | None:
    """A new hash when the stored one was made with less work than is usual today; takes long."""
    return hasher.hash(password) if hasher.check_needs_rehash(user.password_hash) else None


@lru_cache(maxsize=1)
def _nobody(current: PasswordHasher) -> str:
    return current.hash(secrets.token_hex(16))


def has_users(session: Session) -> bool:
    """Whether somebody has an account; a new installation has nobody."""
    return session.scalar(sa.select(User.id).limit(1)) is not None


def find_user(session: Session, email: str) -> User | None:
    """The person with this address, however it is written."""
    return session.scalar(sa.select(User).where(User.email == email.strip().lower()))


def create_user(
    session: Session,
    *,
    email: str,
    name: str,
    password: str,
    is_admin: bool,
    language: str | None,
    now: datetime,
    actor: str = "command line",
) -> User:
    """Make an account; raises EmailInvalid, EmailTaken, PasswordTooShort or PasswordTooLong."""
    return add_user(
        session,
        email=email,
        name=name,
        password_hash=hash_password(password),
        is_admin=is_admin,
        language=language,
        now=now,
        actor=actor,
    )


def add_user(
    session: Session,
    *,
    email: str,
    name: str,
    password_hash: str,
    is_admin: bool,
    language: str | None,
    now: datetime,
    actor: str,
) -> User:
    """The same with a password that was hashed before; raises EmailInvalid or EmailTaken."""
    email = normal_email(email)
    if find_user(session, email) is not None:
        raise EmailTaken(N_("There is an account with this address already."))
    user = User(
        email=email,
        name=name.strip(),
        password_hash=password_hash,
        language=language,
        is_admin=is_admin,
        created_at=now,
    )
    session.add(user)
    session.flush()
    _record(session, user, "user created", now, actor, {"is_admin": [None, is_admin]})
    return user


def set_password(
    session: Session, user_id: int, password_hash: str, *, now: datetime, actor: str, keep: int = 0
) -> int:
    """Store a new password hash and end every session but `keep`; returns how many ended."""
    user = session.get_one(User, user_id)
    user.password_hash = password_hash
    ended = session.scalars(
        sa.delete(UserSession)
        .where(UserSession.user_id == user_id, UserSession.id != keep)
        .returning(UserSession.id)
    ).all()
    _record(session, user, "password changed", now, actor, {"password": "changed"})
    return len(ended)


def set_profile(
    session: Session, user_id: int, *, name: str, language: str | None, now: datetime
) -> None:
    """Change how somebody is called, and the language of the pages."""
    user = session.get_one(User, user_id)
    before = {"name": user.name, "language": user.language}
    user.name, user.language = name.strip(), language
    changes = audit.difference(before, {"name": user.name, "language": user.language})
    if changes:
        _record(session, user, "user changed", now, user.email, changes)


def _record(
    session: Session, user: User, action: str, now: datetime, actor: str, changes: dict[str, Any]
) -> None:
    audit.record(
        session,
        at=now,
        actor=actor,
        action=action,
        object_kind="user",
        object_id=user.id,
        changes=changes,
    )


# ---- sessions ----


def digest(secret: str) -> str:
    """What the database keeps of a session's secret; it is random, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def open_session(
    session: Session, user_id: int, *, now: datetime, address: str = "", user_agent: str = ""
) -> str:
    """Begin a session for a browser; returns the secret for its cookie."""
    secret = secrets.token_urlsafe(32)
    session.add(
        UserSession(
            digest=digest(secret),
            user_id=user_id,
            created_at=now,
            seen_at=now,
            expires_at=now + SESSION_LASTS,
            address=address[:64],
            user_agent=user_agent[:300],
        )
    )
    session.flush()
    return secret


def find_session(session: Session, secret: str, now: datetime) -> Found | None:
    """The session of a cookie, unless it has ended or was revoked."""
    row = session.execute(
        sa.select(UserSession, User)
        .join(User, User.id == UserSession.user_id)
        .where(UserSession.digest == digest(secret), UserSession.expires_at > now)
    ).first()
    return Found(session=row[0], user=row[1]) if row else None


def note_seen(session: Session, session_id: int, now: datetime) -> None:
    """Note that a session is in use, which also prolongs it."""
    session.execute(
        sa.update(UserSession)
        .where(UserSession.id == session_id)
        .values(seen_at=now, expires_at=now + SESSION_LASTS)
    )


def sessions_of(session: Session, user_id: int, now: datetime) -> list[UserSession]:
    """Where a person is signed in, the latest first."""
    query = (
        sa.select(UserSession)
        .where(UserSession.user_id == user_id, UserSession.expires_at > now)
        .order_by(UserSession.seen_at.desc(), UserSession.id.desc())
    )
    return list(session.scalars(query))


def end_session(session: Session, session_id: int, *, user_id: int) -> bool:
    """End one session of this person; False when they have no such session."""
    gone = session.execute(
        sa.delete(UserSession)
        .where(UserSession.id == session_id, UserSession.user_id == user_id)
        .returning(UserSession.id)
    )
    return gone.first() is not None


def forget_what_is_over(session: Session, now: datetime) -> None:
    """Delete sessions that ended, and failures that no longer count; for a daily chore."""
    session.execute(sa.delete(UserSession).where(UserSession.expires_at <= now))
    session.execute(sa.delete(Throttle).where(Throttle.last_failed_at <= now - FORGET_AFTER))


# ---- the brakes on guessing ----


def throttle_keys(login: str, address: str) -> tuple[str, str]:
    """The two things whose failures count: the login that is tried, and where it comes from."""
    return f"login:{login.strip().lower()[:320]}", f"address:{_network(address)}"


def _network(address: str) -> str:
    """An IPv6 customer owns a whole /64, so that is what counts."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found.ipv4_mapped or found) if found.version == 6 else str(found)


def delay_after(kind: str, failures: int) -> timedelta:
    """How long to wait after this many failures: nothing at first, then 1, 2, 4 seconds and on.

    It ends at five minutes: whoever knows the password gets in, whatever others tried.
    """
    counted = failures - FREE_FAILURES[kind]
    if counted < 0:
        return timedelta()
    return min(timedelta(seconds=2 ** min(counted, 20)), LONGEST_DELAY)


def delay_for(session: Session, keys: Iterable[str], now: datetime) -> timedelta:
    """How long from now until the next try is taken; zero when it may come at once."""
    longest = timedelta()
    for row in session.scalars(sa.select(Throttle).where(Throttle.key.in_(list(keys)))):
        if now - row.last_failed_at >= FORGET_AFTER:
            continue
        wait = delay_after(row.key.partition(":")[0], row.failures)
        longest = max(longest, row.last_failed_at + wait - now)
    return longest


def note_failure(session: Session, keys: Iterable[str], now: datetime) -> None:
    """Count one failure for each key. Keys are taken in order, or two writers could deadlock."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    for key in sorted(keys):
        statement = insert(Throttle).values(key=key, failures=1, last_failed_at=now)
        counts = Throttle.last_failed_at > now - FORGET_AFTER
        session.execute(
            statement.on_conflict_do_update(
                index_elements=[Throttle.key],
                set_={
                    "failures": sa.case((counts, Throttle.failures + 1), else_=1),
                    "last_failed_at": now,
                },
            )
        )


def clear(session: Session, keys: Iterable[str]) -> None:
    """Forget the failures of these keys, after a success."""
    session.execute(sa.delete(Throttle).where(Throttle.key.in_(list(keys))))
