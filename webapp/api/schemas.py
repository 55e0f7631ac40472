"""What the API takes and gives, as pydantic models: the checks, and what the OpenAPI document says.

Every text is marked for translation: the page that shows the document is read by people.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from webapp.api.checks import (
    check_content_type,
    check_email,
    check_field_name,
    check_file_name,
    check_line,
    check_moment,
    check_value,
    from_base64,
    from_cursor,
    to_list,
    to_mailbox,
    to_moment,
)
from webapp.delivery.models import State
from webapp.fields import N_

MOST_FILES = 200
MOST_FIELDS = 100
LONGEST_KEY = 255
ID = "01HZX3K8M2Q7W4TB"
"""A queue id to show."""


class Scope(StrEnum):
    """What a key may do."""

    SEND = "send"
    READ = "read"
    MANAGE = "manage"


class _Taken(BaseModel):
    """What comes in: names that are not known are refused, and nothing is silently made fit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Given(BaseModel):
    """What goes out."""

    model_config = ConfigDict(frozen=True)


# ---- what comes in ----

Line = Annotated[str, AfterValidator(check_line)]


class Mailbox(_Taken):
    """An address, with the name of who has it."""

    email: Annotated[str, AfterValidator(check_email)] = Field(
        max_length=320, description=N_("The address."), examples=["mara@agentur.example"]
    )
    name: Annotated[Line, StringConstraints(max_length=200)] = Field(
        default="", description=N_("The name shown beside it."), examples=["Mara Lindner"]
    )


OneMailbox = Annotated[Mailbox, BeforeValidator(to_mailbox, json_schema_input_type=Mailbox | str)]
Mailboxes = Annotated[
    tuple[OneMailbox, ...],
    BeforeValidator(to_list, json_schema_input_type=list[Mailbox | str] | Mailbox | str),
]


class AttachmentIn(_Taken):
    """A file that goes along."""

    filename: Annotated[str, AfterValidator(check_file_name)] = Field(
        min_length=1, max_length=255, description=N_("Its name."), examples=["invoice.pdf"]
    )
    content: Annotated[bytes, BeforeValidator(from_base64, json_schema_input_type=str)] = Field(
        alias="content_base64",
        description=N_("What is in it, in base64."),
        examples=["SGVsbG8="],
        json_schema_extra={"contentEncoding": "base64"},
    )
    content_type: Annotated[str, AfterValidator(check_content_type)] = Field(
        default="",
        max_length=200,
        description=N_("Its media type. Left out, it follows from the name."),
        examples=["application/pdf"],
    )
    content_id: Annotated[Line, StringConstraints(max_length=200)] = Field(
        default="",
        pattern=r"^([^\s<>@]+(@[^\s<>@]+)?)?$",
        description=N_("For a picture that the HTML shows by cid:, the name after the colon."),
        examples=["logo"],
    )


class MessageIn(_Taken):
    """A mail to be made and sent."""

    from_: OneMailbox = Field(
        alias="from", description=N_("The sender: an address, with a name or without.")
    )
    to: Mailboxes = Field(default=(), description=N_("Recipients: one, or a list."))
    cc: Mailboxes = Field(default=(), description=N_("Recipients that everybody sees too."))
    bcc: Mailboxes = Field(default=(), description=N_("Recipients that nobody else sees."))
    reply_to: Mailboxes = Field(default=(), description=N_("Where answers are to go."))
    subject: Annotated[Line, StringConstraints(max_length=998)] = Field(
        default="", description=N_("The subject."), examples=["Your order 20431"]
    )
    text: str | None = Field(
        default=None,
        description=N_("The mail as plain text."),
        examples=["Thank you for your order."],
    )
    html: str | None = Field(
        default=None,
        description=N_("The mail as HTML. With both, each reader chooses."),
        examples=["<p>Thank you for your order.</p>"],
    )
    headers: dict[
        Annotated[str, AfterValidator(check_field_name)],
        Annotated[str, AfterValidator(check_value), StringConstraints(max_length=10_000)],
    ] = Field(
        default={},
        max_length=MOST_FIELDS,
        description=N_("Further header fields. Those that have a field of their own are refused."),
        examples=[{"List-Unsubscribe": "<https://shop.example/u/1>"}],
    )
    attachments: tuple[AttachmentIn, ...] = Field(
        default=(), max_length=MOST_FILES, description=N_("Files that go along."), strict=False
    )
    connection: Line | None = Field(
        default=None,
        max_length=40,
        description=N_(
            "The id of one of the site's connections, to send by that one and no other. Left out, "
            "the site's settings decide."
        ),
    )


class ResendIn(_Taken):
    """Whom a mail is sent to once more."""

    to: Mailboxes = Field(
        default=(), description=N_("Left out: everybody it was sent to the first time.")
    )


Moment = Annotated[AwareDatetime, BeforeValidator(to_moment), AfterValidator(check_moment)]


class ListQuery(BaseModel):
    """Which messages are listed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: State | None = Field(default=None, description=N_("Only those in this state."))
    since: Moment | None = Field(
        default=None, description=N_("Only those accepted at this time or later, with a time zone.")
    )
    until: Moment | None = Field(
        default=None, description=N_("Only those accepted before this time, with a time zone.")
    )
    q: Annotated[str, StringConstraints(max_length=200)] = Field(
        default="", description=N_("Words of the subject, the sender or the recipients.")
    )
    limit: int = Field(default=50, ge=1, le=100, description=N_("How many at most."))
    after: Annotated[int | None, BeforeValidator(from_cursor, json_schema_input_type=str)] = Field(
        default=None, description=N_("The value of `next` from the page before.")
    )


class SendHeaders(BaseModel):
    """Header fields of a request that hands in mail."""

    idempotency_key: str | None = Field(
        default=None,
        alias="Idempotency-Key",
        min_length=1,
        max_length=LONGEST_KEY,
        description=N_(
            "Any text of your own. The same key with the same body is answered as the first time, "
            "and nothing is sent again, for 24 hours."
        ),
        examples=["order-20431-confirmation"],
    )


class MimeHeaders(SendHeaders):
    """The same, and what a raw mail cannot say of itself."""

    mail_from: str | None = Field(
        default=None,
        alias="X-Postroom-Mail-From",
        description=N_("For a raw mail: the envelope sender. Left out, it is the From address."),
    )
    rcpt_to: str | None = Field(
        default=None,
        alias="X-Postroom-Rcpt-To",
        description=N_(
            "For a raw mail: the recipients, with commas between them. Left out, they are those of "
            "To, Cc and Bcc."
        ),
    )
    connection: str | None = Field(
        default=None,
        alias="X-Postroom-Connection",
        description=N_("For a raw mail: the id of the connection to send by."),
    )


# ---- what goes out ----


class AcceptedOut(_Given):
    """The mail is stored, and goes out by itself from here on."""

    id: str = Field(description=N_("Its id here."), examples=[ID])
    status: State = Field(description=N_("Its state at this moment."), examples=[State.QUEUED])
    url: str = Field(
        description=N_("Where to ask how far it has come."),
        examples=[f"https://post.example.org/api/v1/messages/{ID}"],
    )


class RecipientOut(_Given):
    """One recipient, and what became of it."""

    address: str = Field(description=N_("The address."))
    status: State = Field(description=N_("Its state."))
    code: str = Field(description=N_("The code of the last answer."), examples=["250"])
    words: str = Field(description=N_("The words of the last answer."))
    attempt: int | None = Field(description=N_("The number of the attempt that it is from."))


class AttemptOut(_Given):
    """One try to send it."""

    number: int = Field(description=N_("From 1."))
    connection: str = Field(description=N_("The connection it was tried by."))
    outcome: str = Field(description=N_("What came of it."), examples=["sent"])
    code: str = Field(description=N_("The code of the answer."), examples=["250"])
    words: str = Field(description=N_("The words of the answer."))
    remote_id: str = Field(description=N_("The id that the other side gave."))
    started_at: datetime = Field(description=N_("When it began."))
    finished_at: datetime | None = Field(description=N_("When it ended."))


class SummaryOut(_Given):
    """A mail as the list shows it."""

    id: str = Field(description=N_("Its id here."), examples=[ID])
    status: State = Field(description=N_("Its state at this moment."))
    from_: str = Field(serialization_alias="from", description=N_("The sender as handed in."))
    subject: str = Field(description=N_("The subject."))
    to: str = Field(description=N_("The recipients, cut after a few."))
    recipient_count: int = Field(description=N_("How many recipients it has."))
    message_id: str = Field(description=N_("The Message-ID header field, where it had one."))
    maybe_twice: bool = Field(
        description=N_(
            "Whether it went out again after an answer was lost, and may be there twice."
        )
    )
    has_attachments: bool = Field(description=N_("Whether files go along."))
    attempt_count: int = Field(description=N_("How often it was tried."))
    last_code: str = Field(description=N_("The code of the last answer."))
    last_words: str = Field(description=N_("The words of the last answer."))
    accepted_at: datetime = Field(description=N_("When it was handed in."))
    finished_at: datetime | None = Field(description=N_("When it was over."))
    url: str = Field(description=N_("Where to ask how far it has come."))


class MessageOut(SummaryOut):
    """A mail with everything but its content."""

    source: str = Field(description=N_("How it was handed in."), examples=["api"])
    mail_from: str = Field(description=N_("The envelope sender."))
    sent_from: str = Field(description=N_("The From address it last went out with."))
    size_bytes: int = Field(description=N_("Its size."))
    next_try_at: datetime | None = Field(
        description=N_("When it is tried next; empty when it is over or waits for somebody.")
    )
    waits_for: str = Field(
        description=N_("Why it has not left yet, in one word; empty when nothing keeps it."),
        examples=["later"],
    )
    expires_at: datetime = Field(description=N_("How long it is tried."))
    recipients: tuple[RecipientOut, ...] = Field(description=N_("Every recipient."))
    attempts: tuple[AttemptOut, ...] = Field(description=N_("Every try."))


class PageOut(_Given):
    """A page of messages, newest first."""

    messages: tuple[SummaryOut, ...] = Field(description=N_("The messages."))
    next: str | None = Field(
        description=N_(
            "Pass it as `after` for the page that follows; empty on the last one. A search may "
            "give a short page and still go on."
        )
    )


class Fault(_Given):
    """One thing that is wrong with a request."""

    detail: str = Field(description=N_("What is wrong, as a sentence."))
    pointer: str | None = Field(
        default=None,
        description=N_("Where in the body, as a JSON pointer."),
        examples=["/to/0"],
    )
    parameter: str | None = Field(
        default=None, description=N_("Which parameter or header field."), examples=["limit"]
    )


class Problem(_Given):
    """Why a request was refused (RFC 9457)."""

    type: str = Field(
        description=N_("The kind of problem, as an address that explains it."),
        examples=["https://post.example.org/api#invalid"],
    )
    title: str = Field(description=N_("The kind of problem in words."))
    status: int = Field(description=N_("The HTTP status."), examples=[422])
    detail: str | None = Field(default=None, description=N_("What happened this time."))
    errors: tuple[Fault, ...] | None = Field(
        default=None, description=N_("Each thing that is wrong, where there may be several.")
    )
    error_id: str | None = Field(
        default=None, description=N_("For a mistake of ours: the id that the log has it under.")
    )


def pointer_of(document: Any, location: tuple[int | str, ...]) -> str:
    """A JSON pointer (RFC 6901) to what pydantic complains of, as far as the document has it."""
    parts = []
    for part in location:
        if isinstance(document, Mapping):
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int) and part < len(document):
            document = document[part]
        else:
            break
        parts.append(str(part).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in parts)
