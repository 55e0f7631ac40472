"""What every mailer has in common: settings in, a conversation out, a receipt back.

A mailer is a frozen keyword-only dataclass of settings (see `webapp.fields`) that declares a
`slug`. It knows neither Flask nor the database; what it needs from its surroundings is handed in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import ClassVar, Self

from webapp.mailers.errors import DeliveryError


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The machine a mailer runs on.

    `ca_file` holds the certificates to trust (None: the system's), `hostname` is how we introduce
    ourselves. `timeout` is for one step; `answer_timeout` for the answer after the whole mail:
    giving up early there means sending twice (RFC 5321, 4.5.3.2.6 asks for ten minutes).
    """

    hostname: str
    ca_file: str | None = None
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

    `envelope` is False for services that take the recipients from the headers;
    `supports_return_path` says that the envelope sender can be chosen.
    """

    slug: ClassVar[str] = ""
    label: ClassVar[str] = ""
    description: ClassVar[str] = ""
    envelope: ClassVar[bool] = True
    supports_return_path: ClassVar[bool] = False

    @abstractmethod
    def open(self, surroundings: Surroundings) -> Conversation:
        """A conversation; nothing goes over the network before its first `send`."""

    @abstractmethod
    def lane_key(self) -> str:
        """What the remote limits: mails with the same key share one pace. Holds no secret."""

    def send(self, envelope: Envelope, content: bytes, surroundings: Surroundings) -> Receipt:
        """Hand over a single mail in a conversation of its own."""
        with self.open(surroundings) as conversation:
            return conversation.send(envelope, content)
