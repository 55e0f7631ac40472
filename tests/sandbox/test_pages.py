"""The pages: what they show, in both languages, and where they lead."""

import base64
from collections.abc import Iterator

import pytest
import requests

from tests.pages import Page, faults
from tests.rig.sandbox import SandboxThread
from tests.sandbox.conftest import CALLBACK, Client, arguments
from tests.sandbox.test_faults import MIME, send
from webapp.sandbox.directory import CONTOSO, FABRIKAM, PERSONAL_DOMAIN


class Reader:
    """Opens pages and checks each, as for the dashboard; the sandbox has no tokens in its forms."""

    def __init__(self, sandbox: SandboxThread) -> None:
        self.sandbox = sandbox
        self.http = requests.Session()
        self.http.trust_env = False

    def get(self, path: str, *, status: int = 200, language: str = "en") -> Page:
        answer = self.http.get(self._at(path), headers={"Accept-Language": language}, timeout=30)
        return self._page(answer, status)

    def post(self, path: str, *, status: int = 200, **form: str) -> Page:
        return self._page(self.http.post(self._at(path), data=form, timeout=30), status)

    def send(self, path: str, **form: str) -> requests.Response:
        """The answer as it comes."""
        return self.http.post(self._at(path), data=form, allow_redirects=False, timeout=30)

    def _at(self, path: str) -> str:
        return path if path.startswith("http") else f"{self.sandbox.inbox}{path}"

    @staticmethod
    def _page(answer: requests.Response, status: int) -> Page:
        assert answer.status_code == status, answer.text
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self'")
        assert "unsafe" not in policy
        page = Page(answer)  # type: ignore[arg-type]
        assert [fault for fault in faults(page) if "csrf_token" not in fault] == []
        assert "Microsoft" in page.notices[0]
        return page


@pytest.fixture
def reader(sandbox: SandboxThread) -> Iterator[Reader]:
    made = Reader(sandbox)
    yield made
    made.http.close()


# ---- signing in ----


def test_a_person_picks_an_account_and_consents(reader: Reader) -> None:
    address = reader.sandbox.authorize_url()
    page = reader.get(address)
    assert page.h1 == "Pick an account"
    picked = page.one("button", value="ann.lee@mail.contoso.example")
    assert picked.text == "Ann Lee <ann@contoso.example>"
    page = reader.post(address, account=picked["value"])
    assert page.h1 == "Permissions requested"
    assert "Mail.Send" in page.text
    answer = reader.send(address, account=page.value("account"), decision="accept")
    assert answer.status_code == 302
    back = answer.headers["Location"]
    assert back.startswith(f"{CALLBACK}?code=")
    assert arguments(back)["state"] == "abc"


def test_consent_is_asked_for_once(reader: Reader) -> None:
    address = reader.sandbox.authorize_url()
    reader.send(address, account="ann@contoso.example", decision="accept")
    assert reader.send(address, account="ann@contoso.example").status_code == 302
    again = reader.sandbox.authorize_url(prompt="consent")
    assert reader.post(again, account="ann@contoso.example").h1 == "Permissions requested"


def test_more_permissions_are_asked_for_again(reader: Reader) -> None:
    reader.send(reader.sandbox.authorize_url(), account="ann@contoso.example", decision="accept")
    more = reader.sandbox.authorize_url(scope=f"openid {reader.sandbox.graph}/Mail.ReadWrite")
    assert "Mail.ReadWrite" in reader.post(more, account="ann@contoso.example").text


@pytest.mark.parametrize(
    ("decision", "words"), [("cancel", "AADSTS65004"), ("admin", "AADSTS90094")]
)
def test_a_person_does_not_consent(reader: Reader, decision: str, words: str) -> None:
    back = reader.sandbox.sign_in(
        reader.sandbox.authorize_url(), "ann@contoso.example", decision=decision
    )
    given = arguments(back)
    assert (given["error"], given["state"]) == ("access_denied", "abc")
    assert given["error_description"].startswith(words)


def test_anybody_comes_into_being_by_signing_in(reader: Reader) -> None:
    address = reader.sandbox.authorize_url()
    page = reader.post(address, address="shop@northwind.example")
    assert "shop@northwind.example" in page.text
    tenant = reader.sandbox.post("accounts", address="shop@northwind.example")["tenant"]
    assert tenant not in (CONTOSO, FABRIKAM)
    personal = reader.sandbox.post("accounts", address=f"kim@{PERSONAL_DOMAIN}")
    assert personal["tenant"] == "9188040d-6c67-4c5b-b112-36a304b66dad"


def test_what_is_no_address_is_refused(reader: Reader) -> None:
    page = reader.post(reader.sandbox.authorize_url(), status=400, address="nobody")
    assert any("AADSTS50034" in notice for notice in page.notices)


def test_the_hinted_account_stands_first(reader: Reader) -> None:
    page = reader.get(reader.sandbox.authorize_url(login_hint="noreply@fabrikam.example"))
    assert page.all("button", name="account")[0]["value"] == "noreply@fabrikam.example"
    assert page.value("address") == "noreply@fabrikam.example"


@pytest.mark.parametrize(
    ("segment", "account", "words"),
    [
        ("organizations", "sam@outlook.example", "AADSTS500200"),
        ("consumers", "ann@contoso.example", "AADSTS50020"),
        (FABRIKAM, "ann@contoso.example", "AADSTS50020"),
    ],
)
def test_an_account_that_does_not_fit_is_refused(
    reader: Reader, segment: str, account: str, words: str
) -> None:
    page = reader.post(reader.sandbox.authorize_url(segment), status=400, account=account)
    assert any(words in notice for notice in page.notices)


@pytest.mark.parametrize(
    ("segment", "changed", "words"),
    [
        ("common", {"client_id": "00000000-0000-4000-8000-000000000000"}, "AADSTS700016"),
        ("common", {"client_id": ""}, "AADSTS900144"),
        ("nowhere.example", {}, "AADSTS90002"),
        ("common", {"redirect_uri": "http://localhost:8025/elsewhere"}, "AADSTS50011"),
        ("common", {"redirect_uri": "http://127.0.0.1/oauth/microsoft/callback"}, "AADSTS50011"),
        ("common", {"redirect_uri": "http://a.example/oauth/microsoft/callback"}, "AADSTS50011"),
    ],
)
def test_some_errors_are_shown_and_not_sent_back(
    reader: Reader, segment: str, changed: dict[str, str], words: str
) -> None:
    page = reader.get(reader.sandbox.authorize_url(segment, **changed), status=400)
    assert words in page.text


@pytest.mark.parametrize(
    ("segment", "words"),
    [
        ("common", "AADSTS50194"),
        ("organizations", "AADSTS50194"),
        ("consumers", "AADSTS9002332"),
        (FABRIKAM, "AADSTS700016"),
    ],
)
def test_the_application_of_one_tenant_is_for_that_tenant(
    reader: Reader, segment: str, words: str
) -> None:
    client_id = reader.sandbox.single_tenant["client_id"]
    page = reader.get(reader.sandbox.authorize_url(segment, client_id=client_id), status=400)
    assert words in page.text
    reader.get(reader.sandbox.authorize_url(CONTOSO, client_id=client_id))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"scope": "https://graph.microsoft.us/Mail.Send"}, "invalid_scope"),
        ({"scope": ""}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
    ],
)
def test_other_errors_are_sent_back(reader: Reader, changed: dict[str, str], error: str) -> None:
    address = reader.sandbox.authorize_url(**changed)
    answer = reader.http.get(address, allow_redirects=False, timeout=30)
    assert arguments(answer.headers["Location"])["error"] == error


# ---- for a whole tenant ----


def admin_address(reader: Reader, segment: str) -> str:
    query = reader.sandbox.authorize_url(scope=f"{reader.sandbox.graph}/Mail.Send")
    return f"{reader.sandbox.inbox}/{segment}/v2.0/adminconsent?{query.partition('?')[2]}"


def test_after_an_administrators_consent_nobody_is_asked(reader: Reader) -> None:
    reader.sandbox.fault("admin_needed")
    address = reader.sandbox.authorize_url()
    refused = reader.sandbox.sign_in(address, "ann@contoso.example")
    assert arguments(refused)["error_description"].startswith("AADSTS90094")
    page = reader.get(admin_address(reader, "organizations"))
    assert page.h1 == "Consent for your organisation"
    answer = reader.send(admin_address(reader, "organizations"), tenant=CONTOSO, decision="accept")
    given = arguments(answer.headers["Location"])
    assert (given["admin_consent"], given["tenant"], given["state"]) == ("True", CONTOSO, "abc")
    assert given["scope"] == f"{reader.sandbox.graph}/Mail.Send"
    linked = reader.send(address, account="ann@contoso.example")
    assert "code" in arguments(linked.headers["Location"])


def test_an_administrator_declines(reader: Reader) -> None:
    answer = reader.send(admin_address(reader, CONTOSO), tenant=CONTOSO, decision="cancel")
    assert arguments(answer.headers["Location"])["error"] == "access_denied"


def test_an_administrator_consents_for_an_own_tenant_only(reader: Reader) -> None:
    assert "AADSTS50059" in reader.get(admin_address(reader, "common"), status=400).text
    (offered,) = reader.get(admin_address(reader, CONTOSO)).all("option")
    assert offered["value"] == CONTOSO


# ---- inbox and panel ----


def test_a_mail_is_read_in_the_inbox(reader: Reader, client: Client) -> None:
    assert "Nothing arrived yet" in reader.get("/").text
    mime = MIME.replace(
        b"Subject: Order 17", b"Bcc: eve@example.org\r\nSubject: =?utf-8?q?Gru=C3=9F?="
    )
    assert send(client, client.link()["access_token"], mime).status_code == 202
    page = reader.get("/")
    assert "1 mail arrived." in page.text
    page = reader.get(page.links()["Gruß"])
    assert page.h1 == "Gruß"
    assert "bob@example.org, eve@example.org" in page.text
    assert "<17@contoso.example>" in page.text
    assert page.one("pre").text == "Thank you."


def test_html_and_attachments_are_shown_as_text(reader: Reader, client: Client) -> None:
    from tests.factories import a_mail

    raw = a_mail(html="<script>x</script>", files={"Rechnung.pdf": b"%PDF-1.7"})
    body = base64.b64encode(b"From: orders@contoso.example\r\n" + _without_from(raw))
    token = client.link()["access_token"]
    client.graph("POST", "/me/sendMail", token, body, Content_Type="text/plain")
    page = reader.get(f"/mails/{client.sandbox.mails()[0]['number']}")
    assert "Rechnung.pdf" in page.text
    assert page.all("script") == []


def _without_from(raw: bytes) -> bytes:
    return b"\r\n".join(line for line in raw.splitlines() if not line.lower().startswith(b"from:"))


def test_what_is_not_there_is_said(reader: Reader) -> None:
    for path in ("/mails/99", "/mails/x", "/nothing"):
        reader.get(path, status=404)


def test_faults_are_planned_and_cleared_on_the_panel(reader: Reader) -> None:
    page = reader.post(
        "/faults", action="add", kind="throttled", account="", times="3", retry_after="7",
        client_id="", milliseconds="",
    )  # fmt: skip
    assert "Graph: too many requests (429) · 3 more times · Retry-After: 7" in page.text
    assert "Nothing goes wrong." in reader.post("/faults", action="clear").text


def test_a_session_is_ended_on_the_panel(reader: Reader, client: Client) -> None:
    tokens = client.link()
    reader.post("/faults", action="revoke", account="orders@contoso.example")
    assert client.refresh(tokens).json()["error_codes"] == [50173]


def test_an_application_is_added_on_the_panel(reader: Reader, client: Client) -> None:
    reader.post(
        "/faults", action="register", client_id="new", client_secret="s", tenant="contoso.example"
    )
    assert (
        "AADSTS50194" in reader.get(reader.sandbox.authorize_url(client_id="new"), status=400).text
    )
    reader.get(reader.sandbox.authorize_url(CONTOSO, client_id="new"))


@pytest.mark.parametrize(
    "form",
    [
        {"action": "add", "kind": "weather"},
        {"action": "revoke", "account": "nobody@x.example"},
        {"action": "register", "client_id": "x"},
        {"action": "register", "client_id": "x", "client_secret": "y", "tenant": "z"},
        {},
    ],
)
def test_a_form_that_makes_no_sense_is_refused(reader: Reader, form: dict[str, str]) -> None:
    page = reader.post("/faults", status=422, **form)
    assert any(notice.startswith("Not done.") for notice in page.notices)


def test_the_pages_are_there_in_chinese(reader: Reader, client: Client) -> None:
    send(client, client.link()["access_token"])
    number = client.sandbox.mails()[0]["number"]
    for path in ("/", f"/mails/{number}", "/faults", reader.sandbox.authorize_url()):
        page = reader.get(path, language="zh-CN,zh;q=0.9,en;q=0.8")
        assert page.one("html")["lang"] == "zh-Hans"
        assert page.one("a", class_="skip").text == "跳到正文", "not from the catalogue"


@pytest.mark.parametrize(
    ("wish", "lang"),
    [("", "en"), ("fr, zh;q=0.5, en;q=0.3", "zh-Hans"), ("zh;q=0, de", "en"), ("zh;q=x", "en")],
)
def test_the_language_follows_the_browser(reader: Reader, wish: str, lang: str) -> None:
    assert reader.get("/", language=wish).one("html")["lang"] == lang


def test_files_of_the_pages_are_served_and_no_others(reader: Reader) -> None:
    page = reader.get("/")
    for link in page.all("link"):
        assert reader.http.get(f"{reader.sandbox.inbox}{link['href']}", timeout=30).ok
    for name in ("../templates/base.html", "..%2fpyproject.toml", "app.js"):
        url = f"{reader.sandbox.inbox}/static/{name}"
        assert reader.http.get(url, timeout=30).status_code == 404
