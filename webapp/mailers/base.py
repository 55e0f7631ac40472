"""What every mailer has in common: settings in, a conversation out, a receipt back.

A mailer is a frozen keyword-only dataclass of settings (see `webapp.fields`) that declares a
`slug`. It knows neither Flask nor the database; what it needs from its surroundings is handed in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import ClassVar, Protocol, Self

from webapp.mailers.errors import DeliveryError


@dataclass(frozen=True, kw_only=True)
class AccessToken:
    """A bearer token (OAuth 2.0) and the root of the interface it opens, without a slash."""

    value: str = field(repr=False)
    api: str


class TokenSource(Protocol):
    """Gives out access tokens of linked accounts, renewing them when need be."""

    def token(self, grant_id: int, *, refused: str = "", claims: str = "") -> AccessToken:
        """A token that is still good for a while; raises DeliveryError.

        `refused` is a token that the remote answered 401 to: then one that is newer, by one forced
        renewal however many ask for it. `claims` is the challenge that came with the refusal.
        """

    def permissions(self, grant_id: int) -> Collection[str]:
        """What the account has granted, as far as is known; never raises, and asks nobody."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The machine a mailer runs on.

    `ca_file` holds the certificates to trust (None: the system's), `hostname` is how we introduce
    ourselves. `timeout` is for one step; `answer_timeout` for the answer after the whole mail:
    giving up early there means sending twice (RFC 5321, 4.5.3.2.6 asks for ten minutes).
    """

    hostname: str
    ca_file: str | None = None
    tokens: TokenSource | None = None
    timeout: timedelta = timedelta(seconds=30)
    answer_timeout: timedelta = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Who the mail is from (empty for a bounce) and exactly who gets it."""

    mail_from: str
    recipients: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.recipients:
            raise ValueError("an envelope needs a recipient")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The remote took responsibility for every recipient that is not in `refused`.

    When all of them are in `refused`, nothing was sent, and `code` and `words` are empty.
    """

    remote_id: str = ""
    code: str = ""
    words: str = ""
    refused: Mapping[str, DeliveryError] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    """What was said, line by line, for support; holds no secret."""


class Conversation(ABC):
    """Sends several mails one after another for one thread; keeps a connection where that helps."""

    @abstractmethod
    def send(self, envelope: Envelope, content: bytes) -> Receipt:
        """Hand one mail over; raises DeliveryError. The conversation may be used afterwards."""

    def close(self) -> None:  # noqa: B027 - many mailers have nothing to close
        """Let go of the connection; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class Mailer(ABC):
    """The settings of one connection and how mail leaves by it.

    `envelope` is False for services that take the recipients from the headers, and
    `max_recipients` is how many of them one mail may have there; `supports_return_path` says that
    the envelope sender can be chosen, `names_sender` that the From name can. `needs_link` means
    that a person links an account first, and `usual_limits` is the pace it then begins with;
    `settles` says that `settle` may know, where the account permits it.
    """

    slug: ClassVar[str] = ""
    label: ClassVar[str] = ""
    description: ClassVar[str] = ""
    service: ClassVar[str] = ""
    """Who answers, as people call them, where it is always the same."""
    envelope: ClassVar[bool] = True
    supports_return_path: ClassVar[bool] = False
    names_sender: ClassVar[bool] = True
    max_recipients: ClassVar[int | None] = None
    needs_link: ClassVar[bool] = False
    usual_limits: ClassVar[Mapping[str, int]] = {}
    settles: ClassVar[bool] = False

    @abstractmethod
    def open(self, surroundings: Surroundings) -> Conversation:
        """A conversation; nothing goes over the network before its first `send`."""

    @abstractmethod
    def lane_key(self) -> str:
        """What the remote limits: mails with the same key share one pace. Holds no secret.

        Empty where the account that is linked decides.
        """

    def can_settle(self, surroundings: Surroundings) -> bool:
        """Whether `settle` could know; asks nobody, and never raises."""
        return False

    def settle(self, message_id: str, surroundings: Surroundings) -> bool | None:
        """Whether a mail with this Message-ID went out, after an answer was lost.

        None: it cannot be known here. Raises DeliveryError when it could not be asked just now.
        """
        return None

    def send(self, envelope: Envelope, content: bytes, surroundings: Surroundings) -> Receipt:
        """Hand over a single mail in a conversation of its own."""
        with self.open(surroundings) as conversation:
            return conversation.send(envelope, content)
