"""Any SMTP server (RFC 5321), with TLS (RFC 3207, 8314) and a login (RFC 4954).

The one thing that must be exact here is what a failure means for the mail. Up to the final dot
nothing was delivered, and a retry is safe. From the moment the dot may be on its way until its
answer is read, nobody can know: that, and only that, is `UncertainError`.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from webapp.fields import N_, ask
from webapp.mailers.base import Conversation, Envelope, Mailer, Receipt, Surroundings
from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    Misconfigured,
    PermanentError,
    TransientError,
    UncertainError,
)
from webapp.mailers.smtp_replies import (
    UNKNOWN_COMMAND,
    Reply,
    Stage,
    cause_of_closing,
    readable,
    refusal,
    remote_id,
)
from webapp.mailers.smtp_wire import (
    WAYS_TO_SIGN_IN,
    Lost,
    Wire,
    connect,
    forms_of_secret,
    secure,
    wire_form,
)

MAILS_PER_CONNECTION = 100
# After this many idle seconds a server, or a firewall on the way, may have dropped us in silence.
IDLE_SECONDS = 20.0
PROBE_SECONDS = 5.0

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Encryption(Enum):
    """SSL: from the first byte. TLS: STARTTLS, never without. None: plain, but see `auto_tls`."""

    NONE = "none"
    SSL = "ssl"
    TLS = "tls"


def check_host(host: str) -> None:
    """Raise ValueError unless this is a host name or an IP address and nothing else."""
    if "/" in host:
        raise ValueError(N_("Enter only the host name, without https:// and without a path."))
    if any(character.isspace() for character in host):
        raise ValueError(N_("Take the spaces out of the host name."))
    if "@" in host:
        raise ValueError(N_("Enter the name of the mail server, not a mail address."))
    if _is_ip(host):
        return
    if ":" in host:
        raise ValueError(N_("Enter the host name alone; the port has a field of its own."))
    if not _is_host_name(host):
        raise ValueError(N_("Enter a host name such as smtp.example.com, or an IP address."))


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_host_name(host: str) -> bool:
    try:
        labels = host.encode("idna").decode("ascii").split(".")
    except UnicodeError:
        return False
    # A last label of digits would be read as a strange way to write an IP address.
    return len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def check_port(port: int) -> None:
    """Raise ValueError unless this is a TCP port."""
    if not 1 <= port <= 65535:
        raise ValueError(N_("Enter a port from 1 to 65535."))


@dataclass(frozen=True, kw_only=True)
class Smtp(Mailer):
    """The settings of one SMTP server and login."""

    slug = "smtp"
    label = N_("Other SMTP")
    description = N_("Sends through any SMTP server: your host's, your company's or a provider's.")
    supports_return_path = True

    host: str = field(
        metadata=ask(
            N_("SMTP Host"),
            N_("The name of the mail server, as its provider gives it."),
            check=check_host,
            placeholder="smtp.example.com",
        )
    )
    encryption: Encryption = field(
        default=Encryption.TLS,
        metadata=ask(
            N_("Encryption"),
            N_("TLS on port 587 is right for most servers, SSL on port 465 for the others."),
            choices=(
                (Encryption.NONE, N_("None")),
                (Encryption.SSL, "SSL"),
                (Encryption.TLS, "TLS"),
            ),
        ),
    )
    port: int = field(
        default=587,
        metadata=ask(
            N_("SMTP Port"),
            N_("Usually 587 for TLS, 465 for SSL and 25 for no encryption."),
            check=check_port,
        ),
    )
    auto_tls: bool = field(
        default=True,
        metadata=ask(
            N_("Auto TLS"),
            N_("With Encryption set to None: encrypts all the same when the server offers it."),
        ),
    )
    authentication: bool = field(
        default=True,
        metadata=ask(
            N_("Authentication"), N_("Off: the server takes mail from this machine without login.")
        ),
    )
    username: str = field(
        default="",
        metadata=ask(N_("SMTP Username"), N_("Often the whole mail address.")),
    )
    password: str = field(
        default="",
        repr=False,
        metadata=ask(N_("SMTP Password"), N_("Stored encrypted and never shown."), secret=True),
    )

    def problems(self) -> dict[str, str]:
        """Authentication without a user name would be refused by every server."""
        if self.authentication and not self.username:
            return {"username": N_("Enter the user name, or turn Authentication off.")}
        return {}

    @property
    def place(self) -> str:
        """Host and port, as the server is named in words."""
        return f"{self.host}:{self.port}"

    def open(self, surroundings: Surroundings) -> SmtpConversation:
        return SmtpConversation(self, surroundings)

    def lane_key(self) -> str:
        user = self.username if self.authentication else ""
        return f"smtp:{user}@{self.host.lower()}:{self.port}"


class SmtpConversation(Conversation):
    """One login at one server: the connection is kept from mail to mail and renewed unseen."""

    def __init__(
        self,
        mailer: Smtp,
        surroundings: Surroundings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mailer = mailer
        self._around = surroundings
        self._clock = clock
        self._timeout = surroundings.timeout.total_seconds()
        self._secrets = forms_of_secret(mailer.username, mailer.password)
        self._wire: Wire | None = None
        self._used_at = 0.0
        self._clean = True

    def send(self, envelope: Envelope, content: bytes) -> Receipt:
        body = wire_form(content)
        try:
            return self._send(envelope, body)
        except Lost as lost:
            self._drop()
            raise TransientError(lost.words, code=lost.code, cause_code=lost.cause) from lost
        finally:
            self._used_at = self._clock()

    def close(self) -> None:
        if self._wire is not None:
            self._polite(self._wire, "QUIT")
            self._drop()

    def _send(self, envelope: Envelope, body: bytes) -> Receipt:
        kept = self._kept_wire()
        if kept is not None:
            try:
                return self._transaction(kept, envelope, body)
            except Lost:
                # Servers hang up on connections they have had for long, at any command. Nothing
                # of the mail was handed over, so a fresh connection may simply say it again.
                self._drop()
        return self._transaction(self._reach(), envelope, body)

    def _reach(self) -> Wire:
        """A fresh connection; one that does not come about is no matter of this mail."""
        try:
            return self._connect()
        except Lost as lost:
            self._drop()
            raised = TransientError(lost.words, code=lost.code, cause_code=lost.cause)
            raised.unreached = not lost.code and lost.cause is not Cause.PROTOCOL
            raise raised from lost

    def _kept_wire(self) -> Wire | None:
        """The connection of the mail before, if it is still good."""
        wire = self._wire
        if wire is None:
            return None
        if wire.mails >= MAILS_PER_CONNECTION:
            self.close()
            return None
        idle = self._clock() - self._used_at > IDLE_SECONDS
        needs_reset = idle or not self._clean
        if wire.has_spoken() or (needs_reset and not self._polite(wire, "RSET")):
            self._drop()
            return None
        return wire

    def _polite(self, wire: Wire, command: str) -> bool:
        """True if the server still answers; it gets little time, for no mail depends on it."""
        wire.timeout = min(PROBE_SECONDS, self._timeout)
        try:
            return wire.ask(command).code < 300
        except Lost:
            return False
        finally:
            wire.timeout = self._timeout

    def _drop(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _connect(self) -> Wire:
        """A fresh connection, encrypted and signed in as the settings say."""
        mailer = self._mailer
        sock = connect(mailer.host, mailer.port, self._timeout)
        if mailer.encryption is Encryption.SSL:
            sock = secure(sock, mailer.host, self._around.ca_file)
        wire = self._wire = Wire(sock, self._around.hostname, self._timeout, self._secrets)
        try:
            self._introduce(wire)
        except DeliveryError:
            self.close()
            raise
        return wire

    def _introduce(self, wire: Wire) -> None:
        self._demand(Stage.GREETING, wire.read_reply(self._timeout), 220)
        self._demand(Stage.HELLO, wire.hello(), 250)
        if self._wants_starttls(wire):
            self._demand(Stage.STARTTLS, wire.ask("STARTTLS"), 220)
            wire.upgrade(self._mailer.host, self._around.ca_file)
            self._demand(Stage.HELLO, wire.hello(), 250)
        if self._mailer.authentication and self._mailer.username:
            self._sign_in(wire)

    def _wants_starttls(self, wire: Wire) -> bool:
        offered = wire.has_extn("starttls")
        if self._mailer.encryption is Encryption.TLS:
            if not offered:
                words = f"STARTTLS is not offered by {self._mailer.place}"
                raise Misconfigured(words, cause_code=Cause.TLS)
            return True
        return self._mailer.encryption is Encryption.NONE and self._mailer.auto_tls and offered

    def _sign_in(self, wire: Wire) -> None:
        offered = wire.esmtp_features.get("auth", "").upper().split()
        ways = [way for name, way in WAYS_TO_SIGN_IN.items() if name in offered]
        if not ways:
            kinds = ", ".join(offered) or "none at all"
            words = f"AUTH: {self._mailer.place} offers no login we know ({kinds})"
            raise Misconfigured(words, cause_code=Cause.AUTH)
        for way in ways:
            reply = way(wire, self._mailer.username, self._mailer.password)
            if reply.code not in UNKNOWN_COMMAND:
                break  # name and password were judged: asking again would count as a second try
        self._demand(Stage.AUTH, reply, 235)

    def _transaction(self, wire: Wire, envelope: Envelope, body: bytes) -> Receipt:
        options = self._options(wire, envelope, body)
        self._clean = False
        sender = f"MAIL FROM:<{envelope.mail_from}>{options}"
        self._demand(Stage.SENDER, wire.ask(sender), 250)
        refused = self._refused_recipients(wire, envelope)
        if all(address in refused for address in envelope.recipients):
            return Receipt(refused=refused)
        try:
            self._demand(Stage.DATA, wire.ask("DATA"), 354)
            reply = self._hand_over(wire, body)
        except DeliveryError as error:
            error.refused = refused
            raise
        self._clean = True
        wire.mails += 1
        words = self._words(reply)
        return Receipt(remote_id=remote_id(words), code=reply.label, words=words, refused=refused)

    def _options(self, wire: Wire, envelope: Envelope, body: bytes) -> str:
        """What MAIL says about the mail; raises PermanentError where it cannot go here at all."""
        offered = wire.esmtp_features
        limit = offered.get("size", "")
        if limit.isdecimal() and 0 < int(limit) < len(body):
            raise PermanentError(f"SIZE {limit}", cause_code=Cause.TOO_LARGE)
        self._check_address(wire, envelope.mail_from, Cause.SENDER_REFUSED)
        options = f" SIZE={len(body)}" if "size" in offered else ""
        if "8bitmime" in offered and not body.isascii():
            # Where it is not offered the bytes go out all the same: servers of today take them.
            options += " BODY=8BITMIME"
        if "smtputf8" in offered and needs_smtputf8(envelope, body):
            options += " SMTPUTF8"
        return options

    def _check_address(self, wire: Wire, address: str, cause: Cause) -> None:
        if _CONTROL.search(address):
            raise PermanentError("the address holds a control character", cause_code=cause)
        if not address.isascii() and not wire.has_extn("smtputf8"):
            words = f"SMTPUTF8 is not offered by {self._mailer.place}; {address} needs it"
            raise PermanentError(words, cause_code=Cause.UNSUPPORTED)

    def _refused_recipients(self, wire: Wire, envelope: Envelope) -> dict[str, DeliveryError]:
        """Name every recipient; those the server does not take, with its reasons."""
        refused: dict[str, DeliveryError] = {}
        enough: DeliveryError | None = None
        for address in envelope.recipients:
            error = enough or self._refused(wire, address)
            if error is not None:
                refused[address] = error
                if error.cause_code is Cause.TOO_MANY_RECIPIENTS:
                    enough = error
        return refused

    def _refused(self, wire: Wire, address: str) -> DeliveryError | None:
        try:
            self._check_address(wire, address, Cause.RECIPIENT_REFUSED)
            reply = wire.ask(f"RCPT TO:<{address}>")
            self._demand(Stage.RECIPIENT, reply, 250, 251, 252)
        except (PermanentError, TransientError) as error:
            return error  # the other kinds are about the whole connection
        return None

    def _hand_over(self, wire: Wire, body: bytes) -> Reply:
        """Send the content; the one place where an answer can be lost for good."""
        try:
            wire.send_body(body)
            # A server that has spoken or gone never gets the dot: so it cannot have delivered.
            reply = wire.read_reply(self._timeout) if wire.has_spoken() else None
        except Lost as lost:
            self._drop()
            raise TransientError(lost.words, cause_code=lost.cause) from lost
        if reply is None:
            reply = self._end(wire)
            if reply.code < 300:
                return reply
        else:
            self._drop()
        if reply.code < 400:
            self._drop()
            words = self._words(reply)
            raise UncertainError(words, code=reply.label, cause_code=Cause.PROTOCOL)
        raise refusal(Stage.BODY, reply, self._words(reply))

    def _end(self, wire: Wire) -> Reply:
        try:
            return wire.end_body(self._around.answer_timeout.total_seconds())
        except Lost as lost:
            self._drop()
            cause = Cause.PROTOCOL if lost.cause is Cause.PROTOCOL else Cause.LOST_ANSWER
            raise UncertainError(lost.words, cause_code=cause) from lost

    def _demand(self, stage: Stage, reply: Reply, *wanted: int) -> None:
        """Raise what the reply means unless it is one of those wanted."""
        if reply.code in wanted:
            return
        words = self._words(reply)
        if reply.code == 421:
            raise Lost(cause_of_closing(reply), words, reply.label)
        if reply.code < 400:
            raise Lost(Cause.PROTOCOL, words, reply.label)
        raise refusal(stage, reply, words)

    def _words(self, reply: Reply) -> str:
        return readable(reply.raw, self._secrets)


def needs_smtputf8(envelope: Envelope, body: bytes) -> bool:
    """True when an address or a header is raw UTF-8 (RFC 6531)."""
    if not all(map(str.isascii, (envelope.mail_from, *envelope.recipients))):
        return True
    end = body.find(b"\r\n\r\n")
    header = body if end < 0 else body[:end]
    if header.isascii():
        return False
    try:
        header.decode()
    except UnicodeDecodeError:
        return False  # old 8-bit headers: no extension covers them, and most servers take them
    return True
