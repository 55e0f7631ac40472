"""365 / Outlook: what arrives at Microsoft, and what the receipt tells of it."""

from collections.abc import Iterator

import pytest

from tests.mailers.linked import MAILBOX, Linked, sandbox_token
from tests.rig.answers import Answers, answer
from tests.rig.sandbox import SandboxThread
from webapp.mailers.base import Envelope, Surroundings
from webapp.mailers.outlook import LARGEST, OutlookMailer

ENVELOPE = Envelope(mail_from=MAILBOX, recipients=("bob@example.org", "eve@example.org"))
MAIL = (
    b"From: Orders <orders@contoso.example>\r\nTo: bob@example.org\r\nBcc: eve@example.org\r\n"
    b"Subject: hello\r\nMessage-ID: <one@contoso.example>\r\nX-Order: 4711\r\n"
    b'Content-Type: multipart/alternative; boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
    b"--b\r\nContent-Type: text/html\r\n\r\n<p>hello</p>\r\n--b--\r\n"
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxThread]:
    with SandboxThread() as running:
        yield running


@pytest.fixture
def linked(sandbox: SandboxThread) -> Linked:
    sandbox.reset()
    return Linked(api=f"{sandbox.graph}/v1.0", tokens=[sandbox_token(sandbox)])


def around(sandbox: SandboxThread, linked: Linked) -> Surroundings:
    return Surroundings(hostname="postroom.test", ca_file=sandbox.ca, tokens=linked)


def test_a_mail_arrives_as_it_was_written(sandbox, linked):
    OutlookMailer(grant_id=7).send(ENVELOPE, MAIL, around(sandbox, linked))
    (mail,) = sandbox.mails()
    assert mail["account"] == MAILBOX
    assert mail["recipients"] == ["bob@example.org", "eve@example.org"]
    raw = sandbox.raw(mail["number"])
    assert "X-Order: 4711" in raw
    assert "<p>hello</p>" in raw
    assert "eve@example.org" not in raw


def test_the_receipt_names_the_request(sandbox, linked):
    receipt = OutlookMailer(grant_id=7).send(ENVELOPE, MAIL, around(sandbox, linked))
    assert receipt.code == "202"
    assert receipt.words == ""
    assert len(receipt.remote_id) == 36
    assert any(receipt.remote_id in line for line in receipt.log)
    assert not any(linked.tokens[0] in line for line in receipt.log)


def test_the_token_of_the_mailbox_is_asked_for_at_each_mail(sandbox, linked):
    with OutlookMailer(grant_id=7).open(around(sandbox, linked)) as conversation:
        conversation.send(ENVELOPE, MAIL)
        conversation.send(ENVELOPE, MAIL)
    assert linked.asked == [(7, "", ""), (7, "", "")]
    assert sandbox.counts() == {"<one@contoso.example>": 2}


def test_nothing_happens_before_the_first_mail(sandbox, linked):
    OutlookMailer(grant_id=7).open(around(sandbox, linked)).close()
    assert linked.asked == []


def test_a_mail_of_two_megabytes_goes_through(sandbox, linked):
    mail = MAIL + b"\r\n" * ((LARGEST - len(MAIL)) // 2)
    OutlookMailer(grant_id=7).send(ENVELOPE, mail, around(sandbox, linked))
    assert len(sandbox.mails()) == 1


def test_an_account_that_moved_to_another_cloud_is_followed(linked):
    with Answers() as here, Answers() as there:
        linked.api = here.url
        surroundings = Surroundings(hostname="postroom.test", tokens=linked)
        with OutlookMailer(grant_id=7).open(surroundings) as conversation:
            conversation.send(ENVELOPE, MAIL)
            conversation.send(ENVELOPE, MAIL)
            linked.api = there.url
            conversation.send(ENVELOPE, MAIL)
    assert (len(here.asked), here.connections, len(there.asked)) == (2, 1, 1)


def test_a_conversation_can_be_used_after_a_refusal(linked):
    with Answers() as server:
        server.plan(answer(413))
        linked.api = server.url
        surroundings = Surroundings(hostname="postroom.test", tokens=linked)
        with OutlookMailer(grant_id=7).open(surroundings) as conversation:
            with pytest.raises(Exception, match="413"):
                conversation.send(ENVELOPE, MAIL)
            assert conversation.send(ENVELOPE, MAIL).code == "202"
