"""Where a webhook may lead: never inside, whatever the name says, and never further than asked."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.incidents.hooks import Hook
from webapp.incidents.reach import Trust, Unreached, check_url, post

PUBLIC = "93.184.216.34"


class Names:
    """A resolver that answers one address after the other, and counts."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, *_: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [(2, 1, 6, "", (text, 0)) for text in answer.split()]


def why(url: str, **trust: Any) -> str:
    with pytest.raises(Unreached) as caught:
        post(url, b"{}", {}, Trust(**trust))
    return caught.value.code


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "169.254.169.254",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "[::]",
        "[fe80::1]",
        "[fd00::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::10.0.0.1]",
        "[2002:7f00:1::]",
        "2130706433",
        "0x7f000001",
        "127.1",
        "localhost",
        "224.0.0.1",
    ],
)
def test_a_site_cannot_have_the_inside_called(host: str) -> None:
    assert why(f"https://{host}/") == "private-address"


@pytest.mark.parametrize("address", ["10.0.0.1", "::1", f"{PUBLIC} 127.0.0.1"])
def test_a_name_that_leads_inside_is_refused(address: str) -> None:
    names = Names(address)
    assert why("https://hook.example/", resolver=names) == "private-address"
    assert names.asked == ["hook.example"]


def test_a_name_that_changes_its_mind_is_looked_up_once(hook_tls: Hook, ca: Path) -> None:
    """The classic: public for the check, private for the connection."""
    names = Names("127.0.0.1", PUBLIC)
    trust = Trust(ca_file=str(ca), private=True, resolver=names)
    assert post(f"https://hook.example:{hook_tls.port}/a?b=c", b"{}", {}, trust) == 204
    assert names.asked == ["hook.example"]
    (call,) = hook_tls.calls
    assert call.headers["Host"] == f"hook.example:{hook_tls.port}"
    assert call.path == "/a?b=c"


def test_the_certificate_must_be_of_the_name(hook_tls: Hook, ca: Path) -> None:
    names = Names("127.0.0.1")
    url = f"https://other.example:{hook_tls.port}/"
    assert why(url, ca_file=str(ca), private=True, resolver=names) == "certificate"
    assert why(f"https://hook.example:{hook_tls.port}/", private=True, resolver=names) == (
        "certificate"
    )
    assert hook_tls.calls == []


def test_a_redirect_is_not_followed(hook: Hook) -> None:
    hook.answers, hook.where = [302], "http://169.254.169.254/latest/meta-data"
    assert why(hook.url, private=True) == "redirect 302"
    assert len(hook.calls) == 1


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_another_status_is_no_success(hook: Hook, status: int) -> None:
    hook.answers = [status]
    assert why(hook.url, private=True) == f"status {status}"


def test_plain_http_is_for_this_machine_and_by_an_admin_only(hook: Hook) -> None:
    assert why(hook.url) == "not-https"
    assert why("http://hook.example/", private=True) == "not-https"
    assert why("http://localhost/", private=True, resolver=Names("10.0.0.1")) == "not-https"
    assert post(hook.url, b"{}", {}, Trust(private=True)) == 204


@pytest.mark.parametrize(
    "url",
    [
        "https://",
        "https://a.example\\@10.0.0.1/",
        "https://me:secret@a.example/",
        "https://a.example:99999/",
        "https://a b.example/",
        "//a.example/",
        "ftp://a.example/",
        "file:///etc/passwd",
        "https://[::1",
    ],
)
def test_what_is_no_address_is_not_called(url: str) -> None:
    assert check_url(url, private=True)


def test_a_name_that_nobody_knows_is_said() -> None:
    def unknown(*_: Any) -> list[tuple[Any, ...]]:
        raise OSError

    assert why("https://hook.example/", resolver=unknown) == "unknown-host"


def test_a_server_that_only_trickles_is_left_alone(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.incidents.reach.WHOLE_LIMIT", 0.0)
    assert why(hook.url, private=True) == "timeout"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def hook_tls(authority: trustme.CA) -> Iterator[Hook]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hook.example").configure_cert(context)
    with Hook(context) as made:
        yield made
