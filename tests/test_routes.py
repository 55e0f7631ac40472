"""Every route, asked for by every kind of person: the table of rights holds on each of them.

A view with a new kind of id in its URL adds a line to ARGUMENTS that says how to make such a thing;
a view that takes ids in its form adds one to FOREIGN_BODIES.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from tests.factories import (
    a_connection,
    a_credential,
    a_mail,
    a_membership,
    a_message,
    a_site,
    a_user,
    an_app,
)
from tests.pages import Browser
from webapp import ids
from webapp.accounts import service as accounts
from webapp.accounts.models import Role, User, UserSession
from webapp.accounts.rights import LADDER, Access, Policy, Right, allows, is_per_site
from webapp.api.schemas import Scope
from webapp.crypto import KEY_BYTES, Keyring
from webapp.delivery.models import Source, State
from webapp.incidents.models import AlertTarget, Channel, Incident, IncidentSite
from webapp.installation import Installation
from webapp.sites.models import CredentialKind, Site


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an object is made: at this site, for this person."""

    session: Session
    site: Site
    person: User

    def message(self) -> str:
        raw = a_mail(html="<p>Guten Tag</p>", files={"Rechnung.pdf": b"%PDF-1.7"})
        # A test, so that the page of tests finds it too.
        values = {"state": State.SENT, "source": Source.TEST}
        return a_message(self.session, self.site, raw=raw, **values).queue_id

    def credential(self) -> int:
        return a_credential(self.session, self.site)[0].id

    def shared_app(self) -> str:
        return an_app(self.session, Keyring([b"k" * KEY_BYTES])).uid

    def google_app(self) -> str:
        values = {"provider": "google", "cloud": "google", "tenant": "google"}
        return an_app(self.session, Keyring([b"k" * KEY_BYTES]), **values).uid

    def connection(self) -> str:
        return a_connection(self.session, self.site, primary=False).uid

    def target(self, site: Site | None) -> str:
        target = AlertTarget(
            uid=ids.short_id(),
            site_id=site.id if site else None,
            channel=Channel.EMAIL,
            address="mara@agentur.example",
            created_at=self.site.created_at,
        )
        self.session.add(target)
        return target.uid

    def incident(self) -> str:
        found = Incident(
            uid=ids.short_id(),
            cause=ids.short_id(),
            kind="site-silent",
            details={},
            opened_at=self.site.created_at,
        )
        self.session.add(found)
        self.session.flush()
        self.session.add(IncidentSite(incident_id=found.id, site_id=self.site.id))
        return found.uid

    def own_session(self) -> int:
        secret = accounts.open_session(self.session, self.person.id, now=self.site.created_at)
        digest = accounts.digest(secret)
        query = sa.select(UserSession.id).where(UserSession.digest == digest)
        return self.session.scalars(query).one()


ARGUMENTS: dict[str, Callable[[Place], object]] = {
    "slug": lambda place: place.site.slug,
    "queue_id": Place.message,
    "credential_id": Place.credential,
    "session_id": Place.own_session,
    "app_uid": Place.shared_app,
    "google_app_uid": Place.google_app,
    "connection_uid": Place.connection,
    "any_connection_uid": Place.connection,
    "target_uid": lambda place: place.target(place.site),
    "system_target_uid": lambda place: place.target(None),
    "incident_uid": Place.incident,
    "any_incident_uid": Place.incident,
    "index": lambda place: 0,
}
"""For each argument of a URL, how to make what it names. `index` counts within a mail."""

NOT_IDS = {
    "slug",
    "index",
    "app_uid",
    "google_app_uid",
    "any_connection_uid",
    "system_target_uid",
    "any_incident_uid",
}
"""Arguments that name nothing of one site: a shared registration belongs to all of them."""

FOREIGN_BODIES: dict[str, Callable[[Place], dict[str, object]]] = {
    "testmail.send": lambda place: {
        "to": "mara@agentur.example",
        "via": a_connection(place.session, place.site).uid,
    },
    "sites.put_away": lambda place: {
        "connection": a_connection(
            place.session, place.site, settings={"host": "smtp.office365.com"}
        ).uid,
    },
    "additional.make_primary": lambda place: {
        "connection": a_connection(place.session, place.site).uid,
    },
    "routing.save_routing": lambda place: {
        "rules-shown": "y",
        "r0-uid": "",
        "r0-connection": a_connection(place.session, place.site).uid,
        "r0-g0-c0-property": "subject",
        "r0-g0-c0-operator": "contains",
        "r0-g0-c0-value": "x",
    },
    "routing.try_typed": lambda place: {"try-mail": place.message()},
}
"""For an endpoint that takes ids in its form: a form that names things of another site."""


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A kind of person: a role here, a role at another site, an admin, or nobody."""

    name: str
    here: Role | None = None
    there: Role | None = None
    is_admin: bool = False
    signed_in: bool = True


ACTORS = (
    Actor(name="anonymous", signed_in=False),
    *(Actor(name=role, here=role) for role in LADDER),
    *(Actor(name=f"{role} elsewhere", there=role) for role in LADDER),
    Actor(name="admin", is_admin=True),
)


@pytest.fixture
def app(app: Flask) -> Flask:
    app.config["WTF_CSRF_ENABLED"] = False
    return app


def rules_of(app: Flask) -> list[Rule]:
    return [rule for rule in app.url_map.iter_rules() if rule.endpoint != "static"]


def pages_of(app: Flask) -> list[Rule]:
    """Rules for people; those of the API ask for a key instead."""
    return [rule for rule in rules_of(app) if not isinstance(policy_of(app, rule), Scope)]


def policy_of(app: Flask, rule: Rule) -> Policy | Scope | None:
    return getattr(app.view_functions[rule.endpoint], "required_right", None)


@dataclass(frozen=True, kw_only=True)
class World:
    """Two sites, somebody, and the things that a URL names, here and there."""

    person: User
    values: dict[str, object]
    foreign: dict[str, object]


def a_world(installation: Installation, actor: Actor) -> World:
    with installation.db.write() as session:
        here, there = a_site(session), a_site(session)
        a_connection(session, here)
        a_connection(session, there)
        person = a_user(session, is_admin=actor.is_admin)
        for site, role in ((here, actor.here), (there, actor.there)):
            if role:
                a_membership(session, person, site, role)
        other = a_user(session)
        places = (
            Place(session=session, site=here, person=person),
            Place(session=session, site=there, person=other),
        )
        values, foreign = (
            {name: make(place) for name, make in ARGUMENTS.items()} for place in places
        )
        return World(person=person, values=values, foreign=foreign)


def address(app: Flask, rule: Rule, values: dict[str, object]) -> str:
    wanted = {name: values[name] for name in rule.arguments}
    with app.test_request_context():
        return app.url_map.bind("localhost").build(rule.endpoint, wanted)


def ask(browser: Browser, method: str, path: str, data: dict[str, object]) -> TestResponse:
    options = {"base_url": browser.url, "buffered": True}
    if method == "GET":
        return browser.raw.get(path, **options)  # type: ignore[arg-type]
    return browser.raw.post(path, data=data, **options)  # type: ignore[arg-type]


def verdict(response: TestResponse, actor: Actor) -> str:
    """What became of the request, as far as rights are concerned."""
    if response.status_code in {301, 302, 303} and "/signin" in response.headers["Location"]:
        path = response.request.path
        leads_there = path == "/setup" or (path == "/signout" and actor.signed_in)
        return "allowed" if leads_there else "sign in"
    if response.status_code >= 500 and response.request.path != "/readyz":
        return f"broken ({response.status_code})"
    return {401: "sign in", 403: "denied", 404: "not there"}.get(response.status_code, "allowed")


def expected(policy: Policy | Scope, actor: Actor) -> str:
    if isinstance(policy, Scope):
        return "sign in"  # whoever it is: only a key opens it
    if policy is Access.PUBLIC:
        return "allowed"
    if not actor.signed_in:
        return "sign in"
    if isinstance(policy, Access):
        return "allowed"
    if is_per_site(policy) and not actor.here and not actor.is_admin:
        return "not there"
    allowed = allows(policy, role=actor.here, is_admin=actor.is_admin)
    return "allowed" if allowed else "denied"


def methods_of(rule: Rule) -> list[str]:
    return sorted((rule.methods or set()) & {"GET", "POST"})


# ---- the law about routes ----


def test_every_route_has_a_policy(app: Flask) -> None:
    assert [rule.rule for rule in rules_of(app) if policy_of(app, rule) is None] == []


def test_a_right_at_a_site_stands_on_a_route_with_a_site(app: Flask) -> None:
    for rule in rules_of(app):
        policy = policy_of(app, rule)
        if isinstance(policy, Right):
            assert is_per_site(policy) == ("slug" in rule.arguments), rule.rule


def test_every_argument_of_a_url_is_known_here(app: Flask) -> None:
    unknown = {name for rule in rules_of(app) for name in rule.arguments} - set(ARGUMENTS)
    assert unknown == set(), "say in ARGUMENTS how to make such a thing"


def test_addresses_are_kebab_case(app: Flask) -> None:
    for rule in rules_of(app):
        plain = re.sub(r"<[^>]+>", "", rule.rule)
        assert re.fullmatch(r"[a-z0-9/.-]*", plain), rule.rule


def test_every_number_in_an_address_is_typed(app: Flask) -> None:
    for rule in rules_of(app):
        for name in re.findall(r"<([^:>]+)>", rule.rule):
            assert not name.endswith(("index", "credential_id", "session_id")), rule.rule


# ---- the walk ----


@pytest.mark.parametrize("actor", ACTORS, ids=lambda actor: actor.name)
def test_the_table_of_rights_holds_on_every_route(
    app: Flask, installation: Installation, actor: Actor
) -> None:
    assert list(walk(app, installation, actor)) == []


def walk(app: Flask, installation: Installation, actor: Actor) -> Iterator[str]:
    """Ask for every route; one line for each answer that the table does not foresee."""
    browser, world = fresh(app, installation, actor)
    for rule in rules_of(app):
        policy = policy_of(app, rule)
        if policy is None:
            continue
        for method in methods_of(rule):
            if method == "POST":  # it may change what the next one looks for
                response = ask(*fresh_at(app, installation, actor, rule), {})
            else:
                response = ask(browser, method, address(app, rule, world.values), {})
            found, wanted = verdict(response, actor), expected(policy, actor)
            if found != wanted:
                yield f"{method} {rule.rule}: {found} instead of {wanted}"


def fresh(app: Flask, installation: Installation, actor: Actor) -> tuple[Browser, World]:
    world, browser = a_world(installation, actor), Browser(app)
    if actor.signed_in:
        browser.sign_in(world.person)
    return browser, world


def fresh_at(
    app: Flask, installation: Installation, actor: Actor, rule: Rule
) -> tuple[Browser, str, str]:
    browser, world = fresh(app, installation, actor)
    return browser, "POST", address(app, rule, world.values)


ADMIN = ACTORS[-1]


def test_a_thing_of_another_site_is_not_there(app: Flask, installation: Installation) -> None:
    browser, world = fresh(app, installation, ADMIN)
    wrong = []
    for rule in pages_of(app):
        for name in rule.arguments - NOT_IDS:
            values = world.values | {name: world.foreign[name]}
            for method in methods_of(rule):
                response = ask(browser, method, address(app, rule, values), {"sure": "yes"})
                if response.status_code != 404:
                    wrong.append(f"{method} {rule.rule} with a foreign {name}")
    assert wrong == []


@pytest.mark.parametrize("query", ["", "?site={slug}"])
def test_nothing_of_another_site_is_seen_anywhere(
    app: Flask, installation: Installation, query: str
) -> None:
    owner = next(actor for actor in ACTORS if actor.here == Role.OWNER)
    browser, world = fresh(app, installation, owner)
    hidden = {str(world.foreign[name]) for name in ("slug", "queue_id")}
    for rule in rules_of(app):
        if "GET" in methods_of(rule):
            path = address(app, rule, world.values)
            page = ask(browser, "GET", path + query.format(slug=world.foreign["slug"]), {})
            links = re.sub(r"[?&;]next=[^\"]*|\?site=[^\"]*", "", page.text)
            assert not any(word in links for word in hidden), rule.rule


def test_a_thing_of_another_site_in_a_form_is_refused(
    app: Flask, installation: Installation
) -> None:
    browser, world = fresh(app, installation, ADMIN)
    with installation.db.write() as session:
        there = session.scalars(sa.select(Site).where(Site.slug == world.foreign["slug"])).one()
        place = Place(session=session, site=there, person=world.person)
        forms = {endpoint: make(place) for endpoint, make in FOREIGN_BODIES.items()}
    for rule in rules_of(app):
        if rule.endpoint in forms:
            path = address(app, rule, world.values)
            assert ask(browser, "POST", path, forms[rule.endpoint]).status_code in {404, 422}


# ---- the API, by keys ----


def a_key(session: Session, site: Site, *scopes: Scope) -> dict[str, str]:
    """The header of a program with a key of these scopes."""
    made, secret = a_credential(session, site, CredentialKind.API, scopes=list(scopes))
    return {"Authorization": f"Bearer {made.username}.{secret}"}


def api_verdicts(
    app: Flask, installation: Installation, scopes: tuple[Scope, ...], foreign: bool
) -> Iterator[tuple[Scope, str, int]]:
    """Ask for every route of the API with a key of these scopes; `foreign` names what is another
    site's."""
    app.extensions["postroom.api"].sleep = lambda seconds: None
    for rule in rules_of(app):
        policy = policy_of(app, rule)
        if not isinstance(policy, Scope) or (foreign and not rule.arguments):
            continue
        for method in methods_of(rule):
            world = a_world(installation, ADMIN)
            with installation.db.write() as session:
                slug = str(world.values["slug"])
                site = session.scalars(sa.select(Site).where(Site.slug == slug)).one()
                key = a_key(session, site, *scopes)
            path = address(app, rule, world.foreign if foreign else world.values)
            answer = app.test_client().open(path, method=method, headers=key)
            yield policy, f"{method} {rule.rule}", answer.status_code


@pytest.mark.parametrize("scope", Scope)
def test_a_key_opens_what_its_scope_names_and_nothing_else(
    app: Flask, installation: Installation, scope: Scope
) -> None:
    wrong = [
        f"{name}: {status}"
        for policy, name, status in api_verdicts(app, installation, (scope,), foreign=False)
        if status >= 500 or (status in {401, 403, 404}) != (policy is not scope)
    ]
    assert wrong == []


def test_a_key_finds_nothing_of_another_site(app: Flask, installation: Installation) -> None:
    found = list(api_verdicts(app, installation, tuple(Scope), foreign=True))
    assert {status for _policy, _name, status in found} == {404}
    assert len(found) >= 4


def test_a_view_of_the_api_that_checks_nothing_is_found(
    app: Flask, installation: Installation
) -> None:
    name = "api.message"
    view = app.view_functions[name]
    app.view_functions[name] = view.__wrapped__.__wrapped__  # type: ignore[attr-defined]
    assert policy_of(app, next(rule for rule in rules_of(app) if rule.endpoint == name)) is None


# ---- the walk finds what it looks for ----


def planted(app: Flask, policy: Policy, rule: str = "/planted/<slug>") -> None:
    """A view whose decorator asks for one thing, while the table hears of another."""
    from webapp.web import requires

    def view(**arguments: object) -> str:
        return "in"

    app.add_url_rule(rule, "planted", requires(policy)(view))


def test_a_view_that_lets_too_many_in_is_found(app: Flask, installation: Installation) -> None:
    planted(app, Right.VIEW_LOG)
    app.view_functions["planted"].required_right = Right.DELETE_SITE  # type: ignore[union-attr]
    viewer = ACTORS[1]
    found = list(walk(app, installation, viewer))
    assert found == ["GET /planted/<slug>: allowed instead of denied"]


def test_a_view_without_a_policy_is_found(app: Flask) -> None:
    app.add_url_rule("/planted", "planted", lambda: "in")
    assert [rule.rule for rule in rules_of(app) if policy_of(app, rule) is None] == ["/planted"]
