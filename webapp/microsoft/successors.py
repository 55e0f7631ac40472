"""The second secret of a registration: proved by a call, then used in place of the first.

The one in use stays so until then, and no link has to be made again. What cannot be proved at once,
because nobody answers, waits beside it and is proved by the delivery process.
"""

import sqlalchemy as sa
import structlog

from webapp.crypto import SealError
from webapp.db import Database
from webapp.mailers.errors import DeliveryError
from webapp.microsoft import service
from webapp.microsoft.models import Grant, GrantState, OAuthApp
from webapp.microsoft.tokens import NO_CLOUD, AppFacts, Proof, Tokens, Verdict

log = structlog.get_logger(__name__)

WORKER = "postroom"
"""Who is named in the audit for what nobody pressed a button for."""


def prove(db: Database, tokens: Tokens, app: OAuthApp, secret: str) -> Proof:
    """Whether the provider takes this secret for the registration.

    Asks the network, so no unit of work is open.
    """
    cloud = tokens.clouds.get(app.cloud)
    if cloud is None:
        return Proof(verdict=Verdict.UNKNOWN, words=NO_CLOUD)
    facts = AppFacts(client_id=app.client_id, secret=secret, cloud=cloud, tenant=app.tenant)
    return tokens.prove(facts, _a_link(db, tokens, app))


def _a_link(db: Database, tokens: Tokens, app: OAuthApp) -> str:
    """The tokens of a link by the registration; empty where there is none that can be opened."""
    query = (
        sa.select(Grant.id, Grant.cache)
        .where(Grant.app_id == app.id, Grant.state == GrantState.LINKED, Grant.cache.is_not(None))
        .order_by(Grant.renewed_at.desc())
        .limit(1)
    )
    with db.read() as session:
        found = session.execute(query).first()
    if found is None:
        return ""
    try:
        return str(tokens.keys().unseal("grant", service.grant_subject(found.id), found.cache))
    except (SealError, DeliveryError):
        return ""


def settle(db: Database, tokens: Tokens) -> int:
    """Prove the successors that wait; returns how many are in use now."""
    with db.read() as session:
        waiting = session.scalars(
            sa.select(OAuthApp)
            .where(OAuthApp.next_secret.is_not(None), OAuthApp.secret.is_not(None))
            .order_by(OAuthApp.id)
        ).all()
    return sum(_settle(db, tokens, app) for app in waiting)


def _settle(db: Database, tokens: Tokens, app: OAuthApp) -> bool:
    try:
        secret = service.next_secret_of(app, tokens.keys())
    except (SealError, DeliveryError):
        log.warning("a successor cannot be opened", app=app.uid)
        return False
    proof = prove(db, tokens, app, secret)
    if proof.verdict is Verdict.UNKNOWN:
        log.info("a successor is proved later", app=app.uid, words=proof.words)
        return False
    with db.write() as session:
        found = session.get(OAuthApp, app.id, with_for_update=True)
        if found is None or _asked_with(found) != _asked_with(app):
            return False  # somebody saved something else meanwhile
        if proof.verdict is Verdict.RIGHT:
            service.use_successor(session, found, actor=WORKER, now=db.now())
        else:
            service.refuse_successor(
                session, found, code=proof.code, words=proof.words, actor=WORKER, now=db.now()
            )
    log.info("a successor was proved", app=app.uid, verdict=proof.verdict.value)
    return proof.verdict is Verdict.RIGHT


def _asked_with(app: OAuthApp) -> tuple[object, ...]:
    return (*service.identity(app), app.next_secret)
