"""Fixtures for pages: an installation, its application, and a browser that checks what it opens.

    def test_the_log_opens(client, installation):
        with installation.db.write() as session:
            site, user = a_site(session), a_user(session)
            a_membership(session, user, site, Role.VIEWER)
        client.sign_in(user)
        page = client.get(f"/sites/{site.slug}/log")
        assert page.h1 == "Email Log"

Every HTML page that `client` gets is checked: one h1, title, language, ids, labels, tokens, no
inline script or style. `client.post` fills the token in by itself.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import CodeType
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from itsdangerous import URLSafeTimedSerializer
from jinja2.bccache import Bucket, BytecodeCache
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from tests.factories import CHEAP, an_installation
from webapp import create_app
from webapp.accounts import service as accounts
from webapp.accounts.models import User
from webapp.installation import Installation

VOID = {
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr",
}  # fmt: skip
LABELLED = {"input", "select", "textarea"}


@dataclass
class Node:
    """One element of a page."""

    tag: str
    attributes: dict[str, str]
    parent: "Node | None" = None
    children: "list[Node | str]" = field(default_factory=list)

    def __getitem__(self, name: str) -> str:
        return self.attributes[name]

    def get(self, name: str, default: str = "") -> str:
        return self.attributes.get(name, default)

    @property
    def text(self) -> str:
        """All text in it, with single spaces."""
        parts = (child if isinstance(child, str) else child.text for child in self.children)
        return " ".join(" ".join(parts).split())

    def walk(self) -> "Iterator[Node]":
        ahead = [iter(self.children)]
        while ahead:
            for child in ahead[-1]:
                if isinstance(child, Node):
                    yield child
                    ahead.append(iter(child.children))
                    break
            else:
                ahead.pop()

    def all(self, tag: str = "", **attributes: str) -> "list[Node]":
        """Elements in it; `class_="btn"` finds one class among several, `x_y` stands for x-y."""
        return [node for node in self.walk() if node.is_a(tag, attributes)]

    def one(self, tag: str = "", **attributes: str) -> "Node":
        (found,) = self.all(tag, **attributes)
        return found

    def links_to(self) -> list[str]:
        """Where its links lead."""
        return [node["href"] for node in self.all("a")]

    def is_a(self, tag: str, attributes: Mapping[str, str]) -> bool:
        if tag and self.tag != tag:
            return False
        for name, value in attributes.items():
            if name == "class_":
                if value not in self.get("class").split():
                    return False
            elif self.attributes.get(name.rstrip("_").replace("_", "-")) != value:
                return False
        return True

    def ancestors(self) -> "Iterator[Node]":
        node = self.parent
        while node is not None:
            yield node
            node = node.parent


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self.at = Node("", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs}, self.at)
        self.at.children.append(node)
        if tag not in VOID:
            self.at = node

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.children.append(Node(tag, {n: v or "" for n, v in attrs}, self.at))

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"</{tag}> closes <{self.at.tag}>, at {self.getpos()}"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


class Page(Node):
    """An HTML page, and the answer that brought it."""

    def __init__(self, response: TestResponse) -> None:
        builder = _Builder()
        builder.feed(response.text)
        builder.close()
        assert builder.at is builder.root, f"<{builder.at.tag}> is not closed"
        super().__init__("", {}, None, builder.root.children)
        self.response = response
        self.status = response.status_code

    @property
    def title(self) -> str:
        return self.one("title").text

    @property
    def h1(self) -> str:
        return self.one("h1").text

    @property
    def notices(self) -> list[str]:
        """What the notices at the top say."""
        return [node.text for node in self.all(class_="notice")]

    @property
    def errors(self) -> dict[str, str]:
        """The error at each field, by its id."""
        return {
            node["id"].removesuffix("-error"): node.text for node in self.all(class_="field-error")
        }

    def value(self, name: str) -> str:
        """What stands in a field."""
        node = self.one(name=name)
        if node.tag == "select":
            chosen = [option for option in node.all("option") if "selected" in option.attributes]
            return chosen[0].get("value", chosen[0].text) if chosen else ""
        return node.text if node.tag == "textarea" else node.get("value")

    def links(self) -> dict[str, str]:
        """Addresses by the text of their links."""
        return {node.text: node["href"] for node in self.all("a")}


def faults(page: Page) -> Iterator[str]:
    """What is wrong with a page, whatever it is about."""
    html = page.one("html")
    if html.get("lang") not in {"en", "zh-Hans"}:
        yield f"lang is {html.get('lang')!r}"
    if len(page.all("h1")) != 1:
        yield f"{len(page.all('h1'))} h1"
    if not page.title.endswith(" · Postroom"):
        yield f"the title is {page.title!r}"
    seen: set[str] = set()
    nodes = list(page.walk())
    about = _About(
        ids={node.get("id") for node in nodes},
        labelled={node.get("for") for node in nodes if node.tag == "label"} - {""},
    )
    for node in nodes:
        if (name := node.get("id")) in seen:
            yield f"the id {name} stands twice"
        seen |= {name} - {""}
        yield from _faults_of(node, about)
    for node in page.all("use"):
        if node["href"].removeprefix("#") not in seen:
            yield f"the icon {node['href']} is not on the page"


@dataclass(frozen=True)
class _About:
    """The ids of a page, and those that a label names."""

    ids: set[str]
    labelled: set[str]


def _faults_of(node: Node, page: _About) -> Iterator[str]:
    if node.tag == "style" or "style" in node.attributes:
        yield f"<{node.tag}> has an inline style"
    if node.tag == "script" and not node.get("src"):
        yield "an inline script"
    yield from (f"<{node.tag} {name}>" for name in node.attributes if name.startswith("on"))
    if node.tag == "form" and node.get("method").lower() == "post":
        tokens = [child for child in node.all("input", name="csrf_token") if child.get("value")]
        if not tokens:
            yield f"the form to {node.get('action')!r} has no csrf_token"
    if node.tag in LABELLED and node.get("type") not in {"hidden", "submit"}:
        labels = node.get("id") in page.labelled
        inside = any(parent.tag == "label" for parent in node.ancestors())
        named = labels or inside or node.get("aria-label") or node.get("aria-labelledby")
        if not named:
            yield f"<{node.tag} name={node.get('name')!r}> has no label"
    if node.tag in {"button", "a"} and not (node.get("aria-label") or node.text):
        yield f"a <{node.tag}> without a name"
    for name in node.get("aria-describedby").split():
        if name not in page.ids:
            yield f"aria-describedby names {name}, which is not on the page"


class Browser:
    """A client that checks each page it opens."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.url = app.extensions["postroom"].installation.settings.url
        self.raw: FlaskClient = app.test_client()

    def sign_in(self, user: User) -> None:
        """Sign in as if by the page, without its work."""
        db = self.app.extensions["postroom"].installation.db
        with db.write() as session:
            secret = accounts.open_session(session, user.id, now=db.now())
        with self.raw.session_transaction(base_url=self.url) as cookie:
            cookie.clear()
            cookie["_user_id"] = secret
            cookie["_fresh"] = True

    def sign_out(self) -> None:
        """Forget the cookies."""
        self.raw = self.app.test_client()

    def get(self, path: str, *, status: int = 200, **options: object) -> Page:
        """Open a page, which must answer with this status."""
        return self._page(self.fetch(path, **options), status)

    def fetch(self, path: str, **options: object) -> TestResponse:
        """The answer as it comes: a redirect, a file, JSON."""
        return self.raw.get(path, base_url=self.url, buffered=True, **options)  # type: ignore[arg-type]

    def send(
        self, path: str, data: Mapping[str, object] | None = None, **options: object
    ) -> TestResponse:
        """POST with a token, and give the answer as it comes."""
        form = {"csrf_token": self.token(), **(data or {})}
        return self.raw.post(path, base_url=self.url, data=form, buffered=True, **options)  # type: ignore[arg-type]

    def post(
        self,
        path: str,
        data: Mapping[str, object] | None = None,
        *,
        status: int = 200,
        **options: object,
    ) -> Page:
        """POST with a token and follow redirects by 303; the last answer must have this status."""
        response = self.send(path, data, **options)
        while response.status_code == 303:
            response = self.fetch(response.headers["Location"])
        return self._page(response, status)

    def token(self) -> str:
        """A token of this browser's session, as a form holds it."""
        signer = URLSafeTimedSerializer(
            self.app.config["WTF_CSRF_SECRET_KEY"], salt="wtf-csrf-token"
        )
        with self.raw.session_transaction(base_url=self.url) as cookie:
            cookie.setdefault("csrf_token", secrets.token_hex(20))
            return str(signer.dumps(cookie["csrf_token"]))

    def _page(self, response: TestResponse, status: int) -> Page:
        assert response.status_code == status, _why(response)
        assert response.content_type.startswith("text/html"), response.content_type
        page = Page(response)
        assert list(faults(page)) == []
        return page


def _why(response: TestResponse) -> str:
    where = response.headers.get("Location", "")
    text = re.sub(r"<[^>]+>|\s+", " ", response.text)
    return f"{response.status_code} {urlsplit(where).path} {re.sub(' +', ' ', text)[:1500]}"


class _Compiled(BytecodeCache):
    """What templates were compiled to, for every application of this process."""

    def __init__(self) -> None:
        self._code: dict[tuple[str, str], CodeType] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self._code.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        if bucket.code is not None:
            self._code[bucket.key, bucket.checksum] = bucket.code


@pytest.fixture(scope="session", autouse=True)
def _templates_compiled_once() -> Iterator[None]:
    """Each test has an application of its own; to compile what it shows took half of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flask, "jinja_options", {"bytecode_cache": _Compiled()})
        yield


@pytest.fixture(scope="session", autouse=True)
def _routes_compiled_once() -> Iterator[None]:
    """For the same reason. What is compiled for a route depends on nothing else."""
    compiled = Rule._compile_builder
    known: dict[tuple[object, ...], Callable[..., tuple[str, str]]] = {}

    def once(rule: Rule, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        key = (*rule._trace, repr(rule.defaults), append_unknown)
        if key not in known:
            known[key] = compiled(rule, append_unknown)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rule, "_compile_builder", once)
        yield


@pytest.fixture(autouse=True)
def _cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "hasher", CHEAP)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """An empty installation on SQLite; pages are tested on that."""
    made = an_installation(f"sqlite:///{tmp_path / 'postroom.db'}", tmp_path)
    yield made
    made.close()


@pytest.fixture
def app(installation: Installation) -> Flask:
    """The dashboard of the installation."""
    made = create_app(installation)
    made.testing = True
    return made


@pytest.fixture
def client(app: Flask) -> Browser:
    """A browser in which nobody is signed in yet."""
    return Browser(app)
