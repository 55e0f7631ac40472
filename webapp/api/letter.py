"""The mail that is made from what the API was handed. Pure."""

import mimetypes
from collections.abc import Sequence
from email.message import EmailMessage
from email.policy import SMTP

from webapp.api.schemas import AttachmentIn, Mailbox, MessageIn
from webapp.mime.headers import (
    FOLD_AT,
    Address,
    encode_words,
    new_field,
    render_addresses,
)
from webapp.mime.structure import parameters

POLICY = SMTP.clone(cte_type="7bit")
"""Every byte can pass every server."""
ANY_TYPE = "application/octet-stream"


def recipients_of(letter: MessageIn) -> tuple[str, ...]:
    """Everybody it goes to, each once."""
    everybody = (*letter.to, *letter.cc, *letter.bcc)
    return tuple(dict.fromkeys(mailbox.email for mailbox in everybody))


def a_mail(letter: MessageIn) -> bytes:
    """The source of the mail, with CRLF. Who gets a blind copy does not stand in it."""
    fields = [_addresses("From", [letter.from_])]
    for name, mailboxes in (("To", letter.to), ("Cc", letter.cc), ("Reply-To", letter.reply_to)):
        if mailboxes:
            fields.append(_addresses(name, mailboxes))
    fields.append(_field("Subject", letter.subject))
    fields.extend(_field(name, value) for name, value in letter.headers.items())
    return b"".join(fields) + _body(letter).as_bytes()


def _addresses(name: str, mailboxes: Sequence[Mailbox]) -> bytes:
    """Folded by our own hand: the standard library cannot write an address that is not ASCII."""
    listed = [Address(mailbox.name, mailbox.email) for mailbox in mailboxes]
    return new_field(name.encode(), render_addresses(listed)).raw


def _field(name: str, value: str) -> bytes:
    """As it is where it is ASCII (the standard library would encode a long address on the web)."""
    if value.isascii() and "=?" not in value:
        return new_field(name.encode(), value.encode()).raw
    return new_field(name.encode(), encode_words(value, first=FOLD_AT - len(name) - 2)).raw


def _body(letter: MessageIn) -> EmailMessage:
    mail = EmailMessage(policy=POLICY)
    shown = [file for file in letter.attachments if file.content_id and letter.html is not None]
    attached = [file for file in letter.attachments if file not in shown]
    if letter.text is not None or letter.html is None:
        mail.set_content(letter.text or "")
    if letter.html is not None:
        if letter.text is None:
            mail.set_content(letter.html, subtype="html")
        else:
            mail.add_alternative(letter.html, subtype="html")
        page = mail if letter.text is None else list(mail.iter_parts())[-1]
        assert isinstance(page, EmailMessage)
        for file in shown:
            _add(page, file, "inline")
    for file in attached:
        _add(mail, file, "attachment")
    return mail


def _add(mail: EmailMessage, file: AttachmentIn, disposition: str) -> None:
    kind, more = parameters((file.content_type or _guessed(file.filename)).encode("ascii"))
    main, _, sub = kind.partition("/")
    add = mail.add_related if disposition == "inline" else mail.add_attachment
    add(
        file.content,
        maintype=main,
        subtype=sub,
        cte="base64",
        disposition=disposition,
        filename=file.filename,
        cid=f"<{file.content_id}>" if file.content_id else None,
        params=more or None,
    )


def _guessed(filename: str) -> str:
    kind, encoding = mimetypes.guess_type(filename, strict=False)
    if kind is None or encoding or kind.startswith(("multipart/", "message/")):
        return ANY_TYPE
    return kind
