"""The pages around the sign-in: what arrived, and what is to go wrong."""

from email import message_from_bytes, policy
from email.message import EmailMessage

from webapp.sandbox.directory import Application
from webapp.sandbox.faults import NAMES, Fault, Kind
from webapp.sandbox.mails import Mail
from webapp.sandbox.pages import Pages
from webapp.sandbox.wire import Answer, Request, redirect
from webapp.sandbox.world import World

SHOWN = 200


def inbox(world: World, pages: Pages, request: Request) -> Answer:
    """All mail, newest first."""
    mails = world.inbox.all()
    return pages.show(
        request, "inbox", mails=mails[:SHOWN], total=world.inbox.counts.total(), shown=SHOWN
    )


def mail(world: World, pages: Pages, request: Request, number: str) -> Answer:
    """One mail, with all its headers."""
    found = world.inbox.find(int(number)) if number.isdigit() else None
    if found is None:
        return pages.show(request, "missing", status=404)
    headers, text, attachments = _contents(found)
    return pages.show(
        request, "mail", mail=found, headers=headers, text=text, attachments=attachments
    )


def _contents(found: Mail) -> tuple[list[tuple[str, str]], str, list[str]]:
    source = message_from_bytes(found.parsed.raw, policy=policy.default)
    assert isinstance(source, EmailMessage)
    headers = [(name, str(value)) for name, value in source.items()]
    body = source.get_body(("plain", "html"))
    text = body.get_content() if body is not None else ""
    files = [part.get_filename() or part.get_content_type() for part in source.iter_attachments()]
    return headers, text if isinstance(text, str) else "", files


def faults(world: World, pages: Pages, request: Request) -> Answer:
    """The panel, and what its forms do."""
    wrong = ""
    if request.method == "POST":
        try:
            _act(world, request.form)
        except ValueError as error:
            wrong = str(error)
        else:
            return redirect("/faults", status=303)
    return pages.show(
        request,
        "faults",
        status=422 if wrong else 200,
        wrong=wrong,
        kinds=[(kind.value, NAMES[kind]) for kind in Kind],
        names={kind.value: NAMES[kind] for kind in Kind},
        planned=world.faults.all(),
        accounts=list(world.directory.accounts.values()),
        applications=list(world.directory.applications.values()),
        addresses=world.addresses,
        ca=world.folder.ca,
    )


def _act(world: World, form: dict[str, str]) -> None:
    given = {name: value for name, value in form.items() if name != "action"}
    match form.get("action"):
        case "add":
            world.faults.add(Fault.read(given))
        case "clear":
            world.faults.clear()
        case "revoke":
            account = world.directory.find(form.get("account", ""))
            if account is None:
                raise ValueError("there is no such account")
            world.revoke(account)
        case "register":
            register(world, given)
        case _:
            raise ValueError("the form has no such action")


def register(world: World, given: dict[str, str]) -> None:
    """Add an application; raises ValueError with a sentence."""
    client_id, secret = given.get("client_id", "").strip(), given.get("client_secret", "").strip()
    if not client_id or not secret:
        raise ValueError("an application needs a client id and a secret")
    tenant = given.get("tenant", "").strip()
    if tenant and world.directory.tenant_of(tenant) is None:
        raise ValueError(f"there is no tenant {tenant}")
    world.directory.add_application(
        Application(
            client_id=client_id,
            secret=secret,
            name=given.get("name", "").strip() or client_id,
            tenant=(world.directory.tenant_of(tenant) or "") if tenant else "",
            personal=not tenant,
            next_secret=given.get("next_secret", "").strip(),
        )
    )
    world.save()
