"""What is handed in is what stands in the mail, whatever it is."""

import base64
import email
import email.policy
from email.message import EmailMessage
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from webapp.api.letter import a_mail, recipients_of
from webapp.api.schemas import MessageIn
from webapp.mime.facts import facts_of
from webapp.mime.view import attachment_bytes

CONTROLS = "".join(map(chr, (*range(32), *range(127, 160), 0x2028, 0x2029)))
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)
LINE = st.text(st.characters(exclude_categories=("Cs",), exclude_characters=CONTROLS), max_size=120)
WORD = st.text(st.sampled_from("abcxyz0129äößж漢+-_"), min_size=1, max_size=12)
ADDRESS = st.builds(
    lambda local, domain: f"{local}@{domain}.example",
    WORD,
    st.from_regex(r"[a-z]{1,10}", fullmatch=True),
)
MAILBOX = st.fixed_dictionaries({"email": ADDRESS, "name": LINE})
FILE = st.fixed_dictionaries(
    {
        "filename": LINE.filter(lambda name: name.strip() and not set("/\\") & set(name)),
        "content": st.binary(max_size=2000),
    }
)


def letters() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "from": MAILBOX,
            "to": st.lists(st.one_of(MAILBOX, ADDRESS), min_size=1, max_size=5),
            "cc": st.lists(MAILBOX, max_size=3),
            "bcc": st.lists(ADDRESS, max_size=3),
            "subject": LINE,
            "text": st.one_of(st.none(), TEXT),
            "html": TEXT,
            "files": st.lists(FILE, max_size=3),
            "headers": st.dictionaries(st.just("X-Word"), LINE),
        }
    )


def lines(text: str) -> list[str]:
    """A mail ends its lines by CRLF, and its last one too; which it was before does not matter."""
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")


def words(text: str) -> str:
    """Runs of blanks are folded in a header, and those around it are not part of it."""
    return " ".join(text.split())


def made(letter: dict[str, Any]) -> tuple[MessageIn, bytes]:
    files = [
        {
            "filename": file["filename"],
            "content_base64": base64.b64encode(file["content"]).decode(),
        }
        for file in letter["files"]
    ]
    told = {name: value for name, value in letter.items() if name != "files"}
    asked = MessageIn.model_validate(told | {"attachments": files})
    return asked, a_mail(asked)


@given(letters())
def test_what_is_handed_in_stands_in_the_mail(letter: dict[str, Any]) -> None:
    asked, raw = made(letter)
    facts = facts_of(raw)
    assert words(facts.subject) == words(letter["subject"])
    assert facts.from_email == letter["from"]["email"]
    assert words(facts.from_name) == words(letter["from"]["name"])
    assert [one.email for one in facts.to] == [one.email for one in asked.to]
    assert [one.email for one in facts.cc] == [one.email for one in asked.cc]
    assert facts.bcc == ()
    assert set(recipients_of(asked)) == {one.email for one in (*asked.to, *asked.cc, *asked.bcc)}
    mail = email.message_from_bytes(raw, policy=email.policy.SMTP)
    assert isinstance(mail, EmailMessage)
    for kind in ("html", "text"):
        if letter[kind] is not None:
            part = mail.get_body((kind.replace("text", "plain"),))
            assert part is not None
            assert lines(part.get_content()) == lines(letter[kind])
    assert [attachment_bytes(raw, at) for at in range(len(letter["files"]))] == [
        file["content"] for file in letter["files"]
    ]


@given(letters())
def test_no_value_begins_another_header_field(letter: dict[str, Any]) -> None:
    asked, raw = made(letter)
    mail = email.message_from_bytes(raw, policy=email.policy.compat32)
    assert set(mail.keys()) <= {
        "From", "To", "Cc", "Subject", "X-Word", "MIME-Version", "Content-Type",
        "Content-Transfer-Encoding", "Content-Disposition", "Content-ID",
    }  # fmt: skip
    assert len(mail.keys()) == len(set(mail.keys()))
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    assert b"\n" not in raw.replace(b"\r\n", b"")
    assert isinstance(asked, MessageIn)


def test_a_name_in_other_letters_is_read_by_others_too() -> None:
    letter = {
        "from": "a@b.example", "to": "c@d.example", "text": "x",
        "attachments": [{"filename": "Übersicht 漢字 \"2026\".pdf", "content_base64": "SGVsbG8="}],
    }  # fmt: skip
    raw = a_mail(MessageIn.model_validate(letter))
    mail = email.message_from_bytes(raw, policy=email.policy.SMTP)
    assert isinstance(mail, EmailMessage)
    (file,) = mail.iter_attachments()
    assert file.get_filename() == 'Übersicht 漢字 "2026".pdf'
    assert b"filename*=utf-8''" in raw
