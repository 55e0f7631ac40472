"""Linking a mailbox in the browser: off to its provider, back with a code, the mailbox attached.

Authlib speaks the protocol: state, PKCE, nonce, exchange of the code, the ID token. A state is a
row of `link_flow`, so that it works once, and Authlib ties it to the browser's session besides. The
refresh token goes to whoever renews it from then on. What differs between providers stands in
`sign_in`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sa
from authlib.integrations.flask_client import FlaskIntegration
from authlib.integrations.flask_client.apps import FlaskOAuth2App
from flask import session as cookie
from flask_babel import gettext as _
from sqlalchemy.orm import Session

from webapp import audit, ids
from webapp.accounts.models import Membership, Role, User
from webapp.accounts.rights import Right, allows
from webapp.connections.models import Connection
from webapp.connections.service import is_shared
from webapp.crypto import Keyring, SealError
from webapp.delivery.wake import Waker
from webapp.explain.match import LINK_NO_CODE, LINK_SCOPE_MISSING, LINK_STATE, explain_link
from webapp.google.cloud import every_cloud
from webapp.google.sign_in import GoogleSignIn
from webapp.mailers.errors import DeliveryError
from webapp.microsoft import service
from webapp.microsoft.clouds import Cloud, Segment
from webapp.microsoft.codes import find_code
from webapp.microsoft.models import Consent, FlowKind, Grant, Link, LinkFlow, Mailbox, OAuthApp
from webapp.microsoft.refusals import (
    MAX_WORDS,
    Notice,
    NotLinked,
    clean,
    explained,
    failed,
    notice_of,
    refused,
    told,
)
from webapp.microsoft.service import Attached
from webapp.microsoft.sign_in import MicrosoftSignIn, Opened, SignIn
from webapp.microsoft.standing import is_secure
from webapp.microsoft.tokens import AppFacts, Tokens
from webapp.oauth_session import OAuthSession
from webapp.outward import USER_AGENT, Outward
from webapp.providers import MICROSOFT, provider_of
from webapp.sites.models import Site
from webapp.trust import bundle
from webapp.web import actor, db, installation, now, user

SIGN_INS: Mapping[str, SignIn] = {
    one.provider.slug: one for one in (MicrosoftSignIn(), GoogleSignIn())
}
"""How people sign in, by provider."""
MICROSOFT_SIGN_IN = SIGN_INS[MICROSOFT]

FLOW_LASTS = timedelta(hours=1)
REQUEST_LASTS = timedelta(days=30)
MOST_UNDER_WAY = 5
"""So many sign-ins may be under way in one browser; their states share one cookie."""

_NAME = "mailbox"
_IN_COOKIE = f"_state_{_NAME}_"
"""How Authlib names a state in the session."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Somebody who came back, by a state that was ours and is used up now."""

    state: str = field(repr=False)
    connection_id: int
    site_id: int | None
    """At whose page it was begun; empty for the installation's own connection."""
    app_id: int
    user_id: int
    identity: list[str]
    memory: dict[str, str] = field(repr=False)
    """What Authlib wants back: verifier, nonce, redirect URI."""
    in_cookie: Mapping[str, object] | None
    """What the session of this browser knows of it; None in another browser."""


# ---- before anybody is sent anywhere ----


def open_link(session: Session, site: Site | None, connection: Connection) -> Opened:
    """What a link of this connection needs; raises NotLinked where it cannot be made."""
    settings = installation().settings
    sign_in = SIGN_INS[provider_of(connection.mailer).slug]
    provider = sign_in.provider
    if not is_secure(settings):
        raise refused(
            _("%(provider)s cannot send you back here.", provider=provider.name),
            _(
                "It sends people back to https or to localhost only, and this Postroom is opened "
                "at %(url)s. Whoever runs it has to set up https and put the address into "
                "POSTROOM_PUBLIC_URL.",
                url=settings.url,
            ),
        )
    if connection.mailer != provider.mailer:
        raise refused(
            _("This connection is not %(mailer)s.", mailer=_(provider.label)),
            _(
                "Choose %(mailer)s as the mailer, and save. Then link the mailbox.",
                mailer=_(provider.label),
            ),
        )
    app = service.app_in_use(session, connection)
    if app is None or not service.is_complete(app):
        missing = sign_in.what_is_missing(one_click=service.is_one_click(connection))
        raise refused(_("The app registration is not complete."), missing)
    cloud = every_cloud(settings).get(app.cloud)
    if cloud is None:
        raise refused(
            _("The cloud of the app registration is not set up here any more."),
            _("Choose another cloud in the registration, and save."),
        )
    try:
        secret = service.secret_of(app, installation().keyring)
    except SealError as error:
        raise refused(
            _("The secret of the app registration cannot be opened."),
            _("It was stored with another key. Enter it again, and save."),
        ) from error
    mailbox = session.scalar(
        sa.select(Mailbox)
        .join(Grant, Grant.mailbox_id == Mailbox.id)
        .join(Link, Link.grant_id == Grant.id)
        .where(Link.connection_id == connection.id, Link.app_id == app.id)
    )
    return Opened(
        site=site,
        connection=connection,
        app=app,
        cloud=cloud,
        sign_in=sign_in,
        secret=secret,
        mailbox=mailbox,
    )


# ---- the client ----


class _Client(FlaskOAuth2App):  # type: ignore[misc]  # Authlib has no types
    client_cls = OAuthSession


class _Memory:
    """The cache that Authlib asks for, for one request; `link_flow` keeps it between two."""

    def __init__(self, values: dict[str, str] | None = None) -> None:
        self.values = dict(values or {})

    def get(self, key: str) -> str | None:
        return self.values.get(key)

    def set(self, key: str, value: str, expires_in: int) -> None:
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


def _client(opened: Opened, memory: _Memory) -> _Client:
    """Built anew each time: one kept would go on with an old secret and old keys."""
    settings = installation().settings
    return _Client(
        FlaskIntegration(_NAME, cache=memory),
        _NAME,
        client_id=opened.app.client_id,
        client_secret=opened.secret,
        server_metadata_url=opened.cloud.metadata_url(opened.app.tenant),
        client_kwargs={
            "scope": " ".join([opened.sign_in.identity, *opened.sign_in.scopes(opened.cloud)]),
            "code_challenge_method": "S256",
            "token_endpoint_auth_method": "client_secret_post",
            "ca_file": str(bundle(settings)),
        },
        user_agent=USER_AGENT,
    )


# ---- off to the provider ----


def begin(opened: Opened) -> str:
    """The address at the provider to go to; from now on this browser is expected back, once.

    Asks the network, so no unit of work is open. Raises NotLinked.
    """
    memory = _Memory()
    client = _client(opened, memory)
    back = opened.sign_in.redirect_uri(installation().settings)
    with told(opened.host, opened.known, opened.provider):
        target = client.create_authorization_url(back, **opened.sign_in.asks(opened.hint))
    client.save_authorize_data(redirect_uri=back, **target)
    _forget_oldest()
    with db().write() as session:
        session.execute(sa.delete(LinkFlow).where(LinkFlow.expires_at <= now()))
        _keep(
            session,
            FlowKind.LINK,
            opened,
            target["state"],
            {
                "memory": memory.values,
                "identity": opened.identity,
                "provider": opened.provider.slug,
                "site": opened.site.id if opened.site else None,
            },
            lasts=FLOW_LASTS,
        )
    return str(target["url"])


def _forget_oldest() -> None:
    """Many sign-ins begun and given up would make the cookie larger than browsers keep."""
    states = [name for name in cookie if name.startswith(_IN_COOKIE)]
    states.sort(key=lambda name: float(cookie[name].get("exp", 0)))
    for name in states[:-MOST_UNDER_WAY]:
        cookie.pop(name)


def _keep(
    session: Session,
    kind: FlowKind,
    opened: Opened,
    state: str,
    data: Mapping[str, object],
    *,
    lasts: timedelta,
) -> LinkFlow:
    found = LinkFlow(
        digest=digest(state),
        kind=kind,
        connection_id=opened.connection.id,
        app_id=opened.app.id,
        user_id=user().id,
        data=installation().keyring.seal("link-flow", _subject(digest(state)), dict(data)),
        outcome=Consent.WAITING,
        created_at=now(),
        expires_at=now() + lasts,
    )
    session.add(found)
    session.flush()
    return found


def digest(state: str) -> str:
    """As a state is stored."""
    return hashlib.sha256(state.encode()).hexdigest()


def _subject(state_digest: str) -> str:
    return f"link_flow:{state_digest}"


# ---- back from the provider ----


def take(state: str, provider: str = MICROSOFT) -> Flow | None:
    """Who this state sent away, and use it up; None for one that is forged, used or old, or is
    not of whom it came back from."""
    mine = (LinkFlow.digest == digest(state), LinkFlow.kind == FlowKind.LINK)
    with db().read() as session:
        if session.scalar(sa.select(LinkFlow.id).where(*mine)) is None:
            return None
    with db().write() as session:
        row = session.execute(
            sa.delete(LinkFlow)
            .where(*mine)
            .returning(
                LinkFlow.connection_id,
                LinkFlow.app_id,
                LinkFlow.user_id,
                LinkFlow.data,
                LinkFlow.expires_at,
            )
        ).first()
    if row is None or row.expires_at <= now() or row.data is None:
        return None
    try:
        data = installation().keyring.unseal("link-flow", _subject(digest(state)), row.data)
    except SealError:
        return None
    assert isinstance(data, dict)
    if data.get("provider", MICROSOFT) != provider:
        return None
    return Flow(
        state=state,
        connection_id=row.connection_id,
        site_id=data.get("site"),
        app_id=row.app_id,
        user_id=row.user_id,
        identity=data["identity"],
        memory=data["memory"],
        in_cookie=cookie.pop(_IN_COOKIE + state, None),
    )


def not_ours(sign_in: SignIn) -> Notice:
    """The state is unknown, used or too old."""
    return notice_of(explain_link(LINK_STATE, "", sign_in.provider.mailer), {})


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """A connection that whoever asks may edit now; the installation's own has no site."""

    connection: Connection
    site: Site | None


def allowed(session: Session, flow: Flow) -> Allowed | None:
    """The connection, if whoever asks may edit its settings now."""
    who = user()
    connection = session.get(Connection, flow.connection_id)
    if connection is None or connection.deleted_at is not None:
        return None
    if connection.is_system:
        may = allows(Right.SYSTEM, role=None, is_admin=who.is_admin)
        return Allowed(connection=connection, site=None) if may else None
    site = session.get(Site, connection.site_id or flow.site_id or 0)
    if site is None or site.deleted_at is not None or (is_shared(connection) and not who.is_admin):
        return None
    member = session.get(Membership, (who.id, site.id))
    role = Role(member.role) if member else None
    may = allows(Right.EDIT_SETTINGS, role=role, is_admin=who.is_admin)
    return Allowed(connection=connection, site=site) if may else None


def finish(flow: Flow, site: Site | None, answer: Mapping[str, str]) -> tuple[Attached, Opened]:
    """Make a link of what came back; raises NotLinked, and then nothing changed."""
    with db().read() as session:
        opened = _as_begun(session, flow, site)
    if flow.in_cookie is None:
        raise explained(opened.known, LINK_STATE, "", opened.provider)
    if answer.get("error"):
        said = answer["error"], answer.get("error_description", "")
        raise explained(opened.known, *said, opened.provider)
    if not answer.get("code"):
        raise explained(opened.known, LINK_NO_CODE, "", opened.provider)
    with _noting(opened):
        token = _redeem(opened, flow)
    permissions = opened.sign_in.granted(opened.cloud, str(token.get("scope") or ""))
    account = opened.sign_in.account(opened, token, permissions)
    with _noting(opened):
        cache = _hand_over(opened, token, permissions)
    with db().write() as session:
        found = allowed(session, flow)
        if found is None:
            raise NotLinked(not_allowed())
        service.hold_app(session, flow.app_id)
        fresh = _as_begun(session, flow, found.site)
        try:
            attached = service.attach(
                session,
                installation().keyring,
                fresh.site,
                fresh.connection,
                fresh.app,
                account,
                cache=cache,
                scopes=permissions,
                actor=actor(),
                now=now(),
            )
        except service.AnotherAccount as error:
            raise refused(
                _("This connection is linked with another account."),
                _(
                    "It is linked with %(linked)s, and you signed in as %(account)s. Sign in as "
                    "%(linked)s, or remove that link first.",
                    linked=str(error),
                    account=account.address,
                ),
            ) from error
    wake()
    return attached, fresh


def wake() -> None:
    """Tell the worker that mail may go now."""
    waker = Waker(installation().settings.instance)
    waker.wake()
    waker.close()


def signed_out() -> Notice:
    """Nobody is signed in with us, or not any more."""
    return Notice(
        strong=_("The mailbox was not linked."),
        text=_("You are not signed in here any more. Sign in, then link the mailbox again."),
    )


def of_somebody_else() -> Notice:
    """Somebody else is signed in with us than the one who was sent away."""
    return Notice(
        strong=_("The mailbox was not linked."),
        text=_("Somebody else began this link. Begin it yourself, in this browser."),
    )


def not_allowed() -> Notice:
    """The person may no longer edit the connection, or it is gone."""
    return Notice(
        strong=_("The mailbox was not linked."),
        text=_("You may not edit the settings of this connection any more, or it was deleted."),
    )


def _as_begun(session: Session, flow: Flow, site: Site | None) -> Opened:
    """The connection, if it still uses the registration that the person signed in with."""
    connection = session.get(Connection, flow.connection_id)
    if connection is None:
        raise NotLinked(not_allowed())
    opened = open_link(session, site, connection)
    if opened.app.id != flow.app_id or opened.identity != flow.identity:
        raise refused(
            _("The app registration was changed meanwhile."),
            _("What you signed in for belongs to the former one. Link the mailbox again."),
        )
    return opened


@contextmanager
def _noting(opened: Opened) -> Iterator[None]:
    """Note at the registration that the provider refuses it: whoever keeps it must know."""
    try:
        yield
    except NotLinked as error:
        found = error.app_refused
        if found is not None:
            with db().write() as session:
                service.hold_app(session, opened.app.id)
                app = session.get(OAuthApp, opened.app.id)
                if app is not None and _is_as_opened(app, opened):
                    service.note_refused_app(
                        session, app, code=found.code, words=found.words, now=now()
                    )
        raise


def _is_as_opened(app: OAuthApp, opened: Opened) -> bool:
    """Whether the refusal is about what is stored now, and not about a former secret."""
    return app.secret == opened.app.secret and service.identity(app) == service.identity(opened.app)


def _redeem(opened: Opened, flow: Flow) -> dict[str, Any]:
    """The token answer, with a checked ID token as `userinfo` and everything we need granted."""
    cookie[_IN_COOKIE + flow.state] = flow.in_cookie  # Authlib takes it out again
    with told(opened.host, opened.known, opened.provider):
        token = _client(opened, _Memory(flow.memory)).authorize_access_token(
            claims_options=opened.sign_in.claims(opened)
        )
        if not token.get("userinfo") or not token.get("access_token"):
            raise ValueError("the token answer has no ID token")
    permissions = opened.sign_in.granted(opened.cloud, str(token.get("scope") or ""))
    lacking = [one for one in opened.provider.required if one not in permissions]
    if lacking:
        found = explain_link(LINK_SCOPE_MISSING, "", opened.provider.mailer)
        notice = notice_of(found, opened.known)
        said = _("Not granted: %(permissions)s.", permissions=", ".join(lacking))
        raise refused(notice.strong, f"{said} {notice.text}", ask_admin=notice.ask_admin)
    if not token.get("refresh_token"):
        raise refused(
            _("%(provider)s gave no permission to stay connected.", provider=opened.provider.name),
            opened.sign_in.lasting(),
        )
    return dict(token)


def _hand_over(opened: Opened, token: Mapping[str, Any], permissions: Sequence[str]) -> str:
    """What the renewer keeps, as a text."""
    settings, keyring = installation().settings, installation().keyring
    ca_file = str(bundle(settings))
    tokens = Tokens(db(), lambda: keyring, every_cloud(settings), lambda: Outward(ca_file=ca_file))
    facts = AppFacts(
        client_id=opened.app.client_id,
        secret=opened.secret,
        cloud=opened.cloud,
        tenant=opened.app.tenant,
    )
    try:
        asked = [one for one in opened.provider.needed if one in permissions]
        return tokens.hand_over(facts, token["refresh_token"], asked)
    except DeliveryError as error:
        raise failed(opened.known, error, opened.provider) from error


# ---- an administrator's consent ----


@dataclass(frozen=True, kw_only=True)
class ConsentRequest:
    """A question to an administrator, and what became of it."""

    url: str = field(repr=False)
    outcome: Consent
    asked_at: datetime
    asked_by: str
    code: str
    words: str


def ask_admin(session: Session, opened: Opened) -> None:
    """Make the link for an administrator, or let the one that is out live longer.

    Raises NotLinked where there is no administrator.
    """
    if opened.app.tenant == Segment.CONSUMERS:
        raise refused(
            _("Personal accounts have no administrator."),
            _("The app registration is for personal accounts only. Link the mailbox, and accept."),
        )
    at, keyring = now(), installation().keyring
    found = _request_of(session, opened.connection, opened.app)
    if found is not None and found.outcome == Consent.WAITING and _state_of(found, keyring):
        found.created_at, found.expires_at, found.user_id = at, at + REQUEST_LASTS, user().id
    else:
        _delete_requests(session, opened.connection)
        state = ids.secret()
        _keep(session, FlowKind.CONSENT, opened, state, {"state": state}, lasts=REQUEST_LASTS)
    _record(session, opened.site, opened.connection, "consent asked for")


def forget_request(session: Session, site: Site, connection: Connection) -> bool:
    """Take the question back; its link then leads to a page that says so. Whether there was one."""
    found = _delete_requests(session, connection)
    if found:
        _record(session, site, connection, "consent no longer asked for")
    return found


def _delete_requests(session: Session, connection: Connection) -> bool:
    gone = session.scalars(
        sa.delete(LinkFlow)
        .where(LinkFlow.connection_id == connection.id, LinkFlow.kind == FlowKind.CONSENT)
        .returning(LinkFlow.id)
    )
    return bool(gone.all())


def _record(session: Session, site: Site | None, connection: Connection, action: str) -> None:
    audit.record(
        session,
        at=now(),
        actor=actor(),
        action=action,
        object_kind="connection",
        object_id=connection.uid,
        site_id=site.id if site else None,
    )


def consent_request(
    session: Session, keyring: Keyring, connection: Connection, app: OAuthApp
) -> ConsentRequest | None:
    """The question that is out about this registration, with its link to show again."""
    found = _request_of(session, connection, app)
    cloud = every_cloud(installation().settings).get(app.cloud)
    state = _state_of(found, keyring) if found else ""
    if found is None or not state or cloud is None:
        return None
    asker = session.get(User, found.user_id)
    return ConsentRequest(
        url=_consent_url(cloud, app, state),
        outcome=Consent(found.outcome),
        asked_at=found.created_at,
        asked_by=asker.email if asker else "",
        code=found.code,
        words=found.words,
    )


def admin_message(request: ConsentRequest, app: OAuthApp, account: str, site: Site) -> str:
    """What to write to the administrator, with the link; plain text in the reader's language.

    `account` is the mailbox it is about, and may be empty.
    """
    name = app.name or app.client_id
    parts = [
        _("Hello,"),
        _(
            "%(site)s is to send its mail through Microsoft 365 as %(account)s. Our organization "
            "wants an administrator to approve the app for that.",
            site=site.name,
            account=account or _("one of our mailboxes"),
        ),
        _(
            "App: %(name)s (Application ID %(client_id)s). It is used by Postroom at %(url)s.",
            name=name,
            client_id=app.client_id,
            url=installation().settings.url,
        ),
        _(
            "What it may do after that, for people who sign in themselves and for nobody else: "
            "send mail as their own account (Mail.Send), read their name and address (User.Read), "
            "and stay connected (offline_access). It reads no mail. No password is shared: "
            "everybody signs in on Microsoft’s own page."
        ),
        _("To approve it, open this link and sign in as an administrator:"),
        request.url,
        _(
            "Afterwards Microsoft leads you to a page that says so; there is nothing else to do. "
            "%(person)s then links the mailbox.",
            person=request.asked_by or _("The person who asked"),
        ),
    ]
    return "\n\n".join(parts)


@dataclass(frozen=True, kw_only=True)
class Landing:
    """What an administrator is told who comes back from Microsoft."""

    outcome: Consent
    app_name: str
    asked_by: str
    code: str
    words: str


def admin_came_back(state: str, answer: Mapping[str, str]) -> Landing | None:
    """Note what became of a question, and give what is stored; None when no question fits.

    A consent counts for good, a refusal until the administrator thinks again. Which tenant it was
    for is not noted: the answer proves nothing about it.
    """
    mine = (
        LinkFlow.digest == digest(state),
        LinkFlow.kind == FlowKind.CONSENT,
        LinkFlow.expires_at > now(),
    )
    with db().read() as session:
        if session.scalar(sa.select(LinkFlow.id).where(*mine)) is None:
            return None
    outcome = _outcome(answer)
    with db().write() as session:
        found = session.scalar(sa.select(LinkFlow).where(*mine).with_for_update())
        if found is None:
            return None
        if outcome is not None and found.outcome != Consent.GIVEN:
            words = clean(answer.get("error_description", ""), MAX_WORDS)
            code = find_code(words) or clean(answer.get("error", ""), 40)
            given = outcome is Consent.GIVEN
            found.outcome = outcome
            found.code, found.words = ("", "") if given else (code[:40], words)
        app, asker = session.get_one(OAuthApp, found.app_id), session.get_one(User, found.user_id)
        return Landing(
            outcome=Consent(found.outcome),
            app_name=app.name or app.client_id,
            asked_by=asker.email,
            code=found.code,
            words=found.words,
        )


def _outcome(answer: Mapping[str, str]) -> Consent | None:
    if answer.get("error"):
        return Consent.REFUSED
    return Consent.GIVEN if answer.get("admin_consent", "").lower() == "true" else None


def _request_of(session: Session, connection: Connection, app: OAuthApp) -> LinkFlow | None:
    return session.scalar(
        sa.select(LinkFlow)
        .where(
            LinkFlow.kind == FlowKind.CONSENT,
            LinkFlow.connection_id == connection.id,
            LinkFlow.app_id == app.id,
            LinkFlow.expires_at > now(),
        )
        .order_by(LinkFlow.id.desc())
        .limit(1)
    )


def _state_of(found: LinkFlow, keyring: Keyring) -> str:
    """The state of a question, which stands in its link; empty when it cannot be opened."""
    if found.data is None:
        return ""
    try:
        data = keyring.unseal("link-flow", _subject(found.digest), found.data)
    except SealError:
        return ""
    return str(data["state"]) if isinstance(data, dict) else ""


def _consent_url(cloud: Cloud, app: OAuthApp, state: str) -> str:
    """Microsoft's page for administrators; it takes one tenant, or work accounts of any."""
    tenant = Segment.ORGANIZATIONS if app.tenant in set(Segment) else app.tenant
    query = {
        "client_id": app.client_id,
        "scope": " ".join(MICROSOFT_SIGN_IN.scopes(cloud)),
        "redirect_uri": MICROSOFT_SIGN_IN.redirect_uri(installation().settings),
        "state": state,
    }
    return f"{cloud.authority(tenant)}/v2.0/adminconsent?{urlencode(query)}"
