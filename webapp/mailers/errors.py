"""Why a delivery failed, by what must happen next.

    DeliveryError
    ├── TransientError         wait and try again, here or on a backup
    ├── UncertainError         the answer was lost after the body went out: it may have arrived
    ├── PermanentError         never again on this connection for this mail
    ├── NeedsReauthorisation   this login or link is refused until a person renews it
    └── Misconfigured          nothing gets through until a person changes the settings

Mailers raise nothing else for what a remote, the network or a setting does to a delivery. The
words are the remote's own, or the system's where the remote said nothing; they hold no secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import Enum, StrEnum
from typing import ClassVar


class FailureKind(Enum):
    """What must happen next."""

    TRANSIENT = "transient"
    UNCERTAIN = "uncertain"
    PERMANENT = "permanent"
    NEEDS_REAUTHORISATION = "needs_reauthorisation"
    MISCONFIGURED = "misconfigured"


class Cause(StrEnum):
    """What went wrong, in one word that pages turn into an explanation."""

    UNKNOWN = ""
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    AUTH = "auth"
    RATE = "rate"
    TIMEOUT = "timeout"
    LOST = "lost"
    LOST_ANSWER = "lost-answer"
    PROTOCOL = "protocol"
    UNSUPPORTED = "unsupported"
    SENDER_REFUSED = "sender-refused"
    RECIPIENT_REFUSED = "recipient-refused"
    TOO_MANY_RECIPIENTS = "too-many-recipients"
    CONTENT_REFUSED = "content-refused"
    TOO_LARGE = "too-large"


class DeliveryError(Exception):
    """A delivery that did not succeed; raise one of the five kinds.

    `words` are what the remote said, `code` its code ("550 5.1.1", "429"), `retry_after` how long
    it asks to be left alone. `refused` holds recipients it had already refused one by one when the
    error came; the error itself is about all others.
    """

    kind: ClassVar[FailureKind]
    unreached = False
    """Nobody there took up the conversation: this says nothing about the mail."""

    def __init__(
        self,
        words: str,
        *,
        code: str = "",
        retry_after: timedelta | None = None,
        cause_code: Cause = Cause.UNKNOWN,
    ) -> None:
        super().__init__(words)
        self.words = words
        self.code = code
        self.retry_after = retry_after
        self.cause_code = cause_code
        self.refused: Mapping[str, DeliveryError] = {}
        self.log: tuple[str, ...] = ()
        """What was said, line by line, for support; holds no secret."""


class TransientError(DeliveryError):
    """Not now: 4yz, throttling, no name, no connection. Nothing was delivered."""

    kind = FailureKind.TRANSIENT


class UncertainError(DeliveryError):
    """The whole mail went out and the answer did not come back: a retry can duplicate it."""

    kind = FailureKind.UNCERTAIN


class PermanentError(DeliveryError):
    """This mail is refused by this connection for good: 5yz, too large, not supported."""

    kind = FailureKind.PERMANENT


class NeedsReauthorisation(DeliveryError):
    """The login or the link is refused; a person must enter a new one."""

    kind = FailureKind.NEEDS_REAUTHORISATION


class Misconfigured(DeliveryError):
    """Nothing can be sent before a person changes a setting, a certificate or a secret."""

    kind = FailureKind.MISCONFIGURED


def scrub(text: str, secrets: Iterable[str]) -> str:
    """The text with every secret in it replaced by asterisks."""
    for secret in secrets:
        # A secret this short is in any sentence by chance; covering it would spell it out.
        if len(secret) > 3 and secret in text:
            text = text.replace(secret, "***")
    return text
