"""Linking a mailbox at its provider, taking a link away, asking an administrator for consent."""

from flask import Blueprint, Response, g, render_template, request, url_for
from flask import session as cookie
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import ngettext
from sqlalchemy.orm import Session

from webapp import audit, web
from webapp.accounts.rights import Access, Right
from webapp.connections.accounts import keeper_of
from webapp.connections.models import Connection
from webapp.connections.places import page_of, registration_page
from webapp.connections.service import (
    STOPPED,
    alert_connection,
    find_connection,
    forget_health,
    is_shared,
)
from webapp.crypto import SealError
from webapp.delivery import replan
from webapp.explain.parts import Keeper
from webapp.google.cloud import every_cloud
from webapp.google.sign_in import revoke
from webapp.microsoft import link as flows
from webapp.microsoft import service
from webapp.microsoft.models import Mailbox
from webapp.microsoft.refusals import Notice, NotLinked
from webapp.microsoft.service import Attached
from webapp.microsoft.sign_in import Opened, SignIn
from webapp.providers import GOOGLE, PROVIDERS, provider_of
from webapp.sites.models import Site
from webapp.web import actor, db, installation, now, own_path, person, requires, see_other, tell
from webapp.words import Tone

bp = Blueprint("microsoft", __name__)

PAGE_LEFT = "link-page"


@bp.after_request
def keep_to_ourselves(response: Response) -> Response:
    """Addresses here hold codes and states: no page and no cache learns of them."""
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response


def general(site: Site | None, connection: Connection) -> str:
    """The place on the settings page that a link is about; without a site it is on System."""
    if site is None:
        return url_for("incidents.system", _anchor="connection")
    way = "shared" if service.is_one_click(connection) else "own"
    suffix = "gmail" if provider_of(connection.mailer).slug == GOOGLE else "app"
    return page_of(site, connection, f"authorization-{way}-{suffix}")


def own_connection(session: Session, uid: str) -> Connection:
    """A connection of the site in hand; 404 for any other one. What every site may choose only
    instance admins change."""
    found = find_connection(session, g.site, uid)
    if found is None:
        web.not_found()
    assert found is not None
    if is_shared(found) and not web.may(Right.SYSTEM):
        raise web.Denied(Right.SYSTEM)
    return found


def refuse(notice: Notice) -> None:
    """Say on the next page why nothing came of it."""
    tell(Tone.BAD, notice.text, strong=notice.strong, words=notice.words)


def refuse_at(site: Site | None, connection: Connection, notice: Notice) -> None:
    """The same for a connection, with the way out: its registration, or an administrator."""
    with db().read() as session:
        app = service.app_in_use(session, connection)
    keeper = keeper_of(app) if app else None
    if keeper is not None:
        notice = notice.told_to(keeper)
    href, link = "", ""
    if notice.ask_admin and site is not None:
        href, link = address_of("ask_admin", site, connection), _("Ask your admin for approval")
    elif app is not None and keeper is Keeper.READER and notice.about_app:
        href, link = registration_page(app), _("Open the registration")
    tell(Tone.BAD, notice.text, strong=notice.strong, href=href, link=link, words=notice.words)


def address_of(view: str, site: Site, connection: Connection) -> str:
    """A page here about one connection."""
    return url_for(f"microsoft.{view}", slug=site.slug, connection_uid=connection.uid)


# ---- off to the provider, and back ----


@bp.get("/sites/<slug>/connections/<connection_uid>/link")
@requires(Right.EDIT_SETTINGS)
def link(slug: str, connection_uid: str) -> ResponseReturnValue:
    """Begin a link, and lead on to its provider.

    It is a page and no redirect: a form may be answered by a redirect to ourselves alone.
    """
    with db().read() as session:
        connection = own_connection(session, connection_uid)
    return lead_on(g.site, connection)


@bp.get("/settings/system/connection/link")
@requires(Right.SYSTEM)
def link_alerts() -> ResponseReturnValue:
    """The same for the installation's own connection."""
    with db().read() as session:
        connection = alert_connection(session)
    if connection is None:
        tell(Tone.INFO, "", strong=_("There is no alert connection yet."))
        return see_other(url_for("incidents.system", _anchor="connection"))
    return lead_on(None, connection)


def lead_on(site: Site | None, connection: Connection) -> ResponseReturnValue:
    """Begin a link; the page that leads on to the provider."""
    try:
        with db().read() as session:
            opened = flows.open_link(session, site, connection)
        address = flows.begin(opened)
    except NotLinked as error:
        refuse_at(site, connection, error.notice)
        return see_other(general(site, connection))
    page = own_path(request.args.get("next"))
    remember_page(connection, page)
    return render_template(
        "microsoft/going.html",
        address=address,
        provider=opened.provider,
        permissions=opened.sign_in.permissions,
        account=opened.hint,
        back=page or general(site, connection),
    )


@bp.get(flows.MICROSOFT_SIGN_IN.callback)
@requires(Access.PUBLIC)
def callback() -> ResponseReturnValue:
    """Where Microsoft sends people back; what they were sent for stands in the flow."""
    state = request.args.get("state", "")
    landing = flows.admin_came_back(state, request.args)
    if landing is not None or "admin_consent" in request.args:
        return render_template("microsoft/consent.html", landing=landing)
    return came_back(state, flows.MICROSOFT_SIGN_IN)


@bp.get(flows.SIGN_INS[GOOGLE].callback)
@requires(Access.PUBLIC)
def google_callback() -> ResponseReturnValue:
    """Where Google sends people back."""
    return came_back(request.args.get("state", ""), flows.SIGN_INS[GOOGLE])


def came_back(state: str, sign_in: SignIn) -> ResponseReturnValue:
    """Go on with what somebody was sent away for, if it was there."""
    flow = flows.take(state, sign_in.provider.slug)
    if flow is None:
        refuse(flows.not_ours(sign_in))
        return see_other(web.home_url())
    return come_back(flow)


def come_back(flow: flows.Flow) -> ResponseReturnValue:
    """Finish a link, if whoever began it is here and still may."""
    found = person()
    if found is None:
        refuse(flows.signed_out())
        return see_other(web.home_url())
    if found.user.id != flow.user_id:
        refuse(flows.of_somebody_else())
        return see_other(web.home_url())
    with db().read() as session:
        allowed = flows.allowed(session, flow)
    if allowed is None:
        refuse(flows.not_allowed())
        return see_other(web.home_url())
    site, connection = allowed.site, allowed.connection
    try:
        attached, opened = flows.finish(flow, site, request.args)
    except NotLinked as error:
        refuse_at(site, connection, error.notice)
        return see_other(general(site, connection))
    tell_linked(attached, opened)
    return see_other(page_left(connection) or general(site, connection))


def remember_page(connection: Connection, path: str | None) -> None:
    """Where a link that was begun leads to once it is made; without a path, to the settings."""
    cookie.pop(PAGE_LEFT, None)
    if path:
        cookie[PAGE_LEFT] = [connection.uid, path]


def page_left(connection: Connection) -> str | None:
    """The page from which the link of this connection was begun, once."""
    uid, path = cookie.pop(PAGE_LEFT, None) or ("", "")
    return own_path(path) if uid == connection.uid else None


def tell_linked(attached: Attached, opened: Opened) -> None:
    """One notice for all that a finished link brought about."""
    account, sender = attached.mailbox.address, opened.connection.from_email
    known = {address.casefold() for address in attached.mailbox.addresses}
    parts, href, link = [], "", ""
    if attached.filled_from:
        parts.append(_("It is the From Email now."))
    elif sender.casefold() not in known:
        parts.append(about_foreign(sender, attached.mailbox))
        if opened.site is None:
            href, link = "#alert-from_email", _("Go to the field")
        else:
            href = address_of("send_as_account", opened.site, opened.connection)
            link = _("Set From Email to %(address)s", address=account)
    if attached.waiting:
        parts.append(leaves_now(attached.waiting))
    strong = _("%(account)s is linked.", account=account)
    tell(Tone.GOOD, " ".join(parts), strong=strong, href=href, link=link)


def about_foreign(sender: str, mailbox: Mailbox) -> str:
    """What the provider does with a From that the account is not known to have."""
    if mailbox.provider == GOOGLE:
        return str(
            _(
                "From Email is %(sender)s. Google silently puts %(account)s in its place, unless "
                "it is added and confirmed in Gmail under Send mail as.",
                sender=sender,
                account=mailbox.address,
            )
        )
    return str(
        _(
            "From Email is %(sender)s. Microsoft refuses mail from addresses that the account may "
            "not send as.",
            sender=sender,
        )
    )


def leaves_now(waiting: int) -> str:
    """How many mails waited for this."""
    return str(
        ngettext("%(num)s waiting mail now leaves.", "%(num)s waiting mails now leave.", waiting)
    )


# ---- taking a link away ----


@bp.route("/sites/<slug>/connections/<connection_uid>/unlink", methods=["GET", "POST"])
@requires(Right.EDIT_SETTINGS)
def unlink(slug: str, connection_uid: str) -> ResponseReturnValue:
    """Remove the link in use, after a question."""
    with db().read() as session:
        connection = own_connection(session, connection_uid)
        mailbox = service.mailbox_of(session, connection)
    if mailbox is not None and mailbox.provider == GOOGLE:
        text = _(
            "Mail that leaves by this connection then waits until a mailbox is linked again. "
            "The stored sign-in is deleted here; other connections keep theirs. Where none is "
            "left, what you granted is withdrawn at Google too."
        )
    else:
        text = _(
            "Mail that leaves by this connection then waits until a mailbox is linked again. "
            "The stored sign-in is deleted here; other connections keep theirs. What you "
            "granted on Microsoft’s page stays there until you withdraw it."
        )
    return taken_away(g.site, connection, mailbox, text)


@bp.route("/settings/system/connection/unlink", methods=["GET", "POST"])
@requires(Right.SYSTEM)
def unlink_alerts() -> ResponseReturnValue:
    """The same for the installation's own connection."""
    with db().read() as session:
        connection = alert_connection(session)
        mailbox = service.mailbox_of(session, connection) if connection else None
    text = _(
        "Only webhooks are told of incidents then. The stored sign-in is deleted here; other "
        "connections keep theirs. What you granted on Microsoft’s page stays there until you "
        "withdraw it."
    )
    return taken_away(None, connection, mailbox, text)


def taken_away(
    site: Site | None, connection: Connection | None, mailbox: Mailbox | None, text: str
) -> ResponseReturnValue:
    """Ask, then remove the link in use; `text` says what comes of it."""
    if connection is None or mailbox is None:
        tell(Tone.INFO, "", strong=_("This connection is not linked with a mailbox."))
        return see_other(general(site, connection) if connection else url_for("incidents.system"))
    back = general(site, connection)
    if request.form.get("sure") != "yes":
        return web.confirm(
            title=_("Remove the link with %(account)s?", account=mailbox.address),
            text=text,
            button=_("Remove the link"),
            back=back,
        )
    with db().write() as session:
        found = session.get_one(Connection, connection.id)
        last = service.last_link(session, found)
        service.detach(
            session,
            session.get_one(Site, site.id) if site else None,
            found,
            actor=actor(),
            now=now(),
        )
    # How many mails wait for the next one stands on the page itself.
    text = withdrawn(last) if last is not None and last.provider == GOOGLE else ""
    strong = _("The link with %(account)s is removed.", account=mailbox.address)
    tell(Tone.GOOD, text, strong=strong)
    return see_other(back)


def withdrawn(last: service.LastLink) -> str:
    """Withdraw at Google what was granted, and say what came of it. Asks the network."""
    cloud = every_cloud(installation().settings).get(last.cloud)
    try:
        cache = installation().keyring.unseal("grant", last.subject, last.cache)
    except SealError:
        cache = ""
    if cloud is not None and revoke(cloud, str(cache)):
        return str(_("It is withdrawn at Google too."))
    return str(
        _(
            "Google could not be told. Who wants it withdrawn there removes the app at "
            "myaccount.google.com, under third-party connections."
        )
    )


# ---- asking an administrator ----


@bp.route("/sites/<slug>/connections/<connection_uid>/ask-admin", methods=["GET", "POST"])
@requires(Right.EDIT_SETTINGS)
def ask_admin(slug: str, connection_uid: str) -> ResponseReturnValue:
    """Make the link for an administrator's consent; the settings page then shows it."""
    with db().read() as session:
        connection = own_connection(session, connection_uid)
    back = general(g.site, connection)
    if request.method == "GET":
        return render_template(
            "microsoft/ask.html",
            title=_("Ask your admin for approval"),
            text=_(
                "You get a link and a text to send to the administrator of your organization. They "
                "open the link, sign in at Microsoft, and approve the app once for everybody. "
                "Nothing else changes for them, and no password is shared."
            ),
            button=_("Make the link"),
            back=back,
        )
    try:
        with db().write() as session:
            found = session.get_one(Connection, connection.id)
            opened = flows.open_link(session, session.get_one(Site, g.site.id), found)
            flows.ask_admin(session, opened)
    except NotLinked as error:
        refuse_at(g.site, connection, error.notice)
        return see_other(back)
    tell(
        Tone.GOOD,
        _("Send it to your admin with the text below. It is good for 30 days."),
        strong=_("The link for your admin is ready."),
    )
    return see_other(back)


@bp.post("/sites/<slug>/connections/<connection_uid>/ask-admin/forget")
@requires(Right.EDIT_SETTINGS)
def forget_request(slug: str, connection_uid: str) -> ResponseReturnValue:
    """Take the question to an administrator back."""
    with db().write() as session:
        connection = own_connection(session, connection_uid)
        if flows.forget_request(session, g.site, connection):
            tell(Tone.GOOD, "", strong=_("The link for your admin is taken back."))
    return see_other(general(g.site, connection))


# ---- sending as the account ----


@bp.route("/sites/<slug>/connections/<connection_uid>/send-as-account", methods=["GET", "POST"])
@requires(Right.EDIT_SETTINGS)
def send_as_account(slug: str, connection_uid: str) -> ResponseReturnValue:
    """Make the linked account's address the From Email."""
    with db().read() as session:
        connection = own_connection(session, connection_uid)
        mailbox = service.mailbox_of(session, connection)
    back = own_path(request.values.get("next")) or general(g.site, connection)
    if mailbox is None:
        tell(Tone.INFO, "", strong=_("This connection is not linked with a mailbox."))
        return see_other(back)
    if request.method == "GET":
        return render_template(
            "microsoft/ask.html",
            title=_("Set From Email to %(address)s?", address=mailbox.address),
            text=_(
                "Mail of this connection is then sent from the address of the linked account, "
                "which %(provider)s always allows.",
                provider=PROVIDERS[mailbox.provider].name,
            ),
            button=_("Set From Email"),
            back=back,
        )
    waiting = set_from(connection, mailbox)
    strong = _("From Email is %(address)s now.", address=mailbox.address)
    tell(Tone.GOOD, leaves_now(waiting) if waiting else "", strong=strong)
    return see_other(back)


def set_from(connection: Connection, mailbox: Mailbox) -> int:
    """Store the address; returns how many waiting mails it touched."""
    with db().write() as session:
        found = session.get_one(Connection, connection.id)
        before, found.from_email = found.from_email, mailbox.address
        if before == mailbox.address:
            return 0
        found.version += 1
        found.updated_at = now()
        if found.health in STOPPED:
            forget_health(found)
        session.flush()
        audit.record(
            session,
            at=now(),
            actor=actor(),
            action="connection changed",
            object_kind="connection",
            object_id=found.uid,
            site_id=found.site_id,
            changes={"from_email": [before, mailbox.address]},
        )
        waiting = replan.connection_saved(
            session, found, lane_key=service.lane_key(mailbox), limits=None, now=now()
        )
    flows.wake()
    return waiting
