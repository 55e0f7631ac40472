"""Submission by SMTP (RFC 6409): AUTH, MAIL, RCPT, DATA; the answer comes after the commit.

aiosmtpd gives the skeleton: the state of a connection, and STARTTLS under it. The command loop and
the commands are our own, because of what they must answer, and because a mail a millisecond leaves
no room for parsing addresses with a grammar or reading DATA line by line.
"""

import asyncio
import base64
import binascii
import re
import socket
import ssl
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiosmtpd.smtp import SMTP, Envelope, TLSSetupException
from aiosmtpd.smtp import Session as AioSession

from webapp.config import Settings
from webapp.db import Database
from webapp.delivery.models import Source
from webapp.disk import FULL
from webapp.ingress.accept import Acceptor, NotAccepted, Submission, note_use
from webapp.ingress.login import Brake, Known, Submitter, authenticate
from webapp.mime.facts import facts_of

log = structlog.get_logger(__name__)

LONGEST_LINE = 64 * 1024
WRONG_LOGINS = 3
COMMAND_TIMEOUT = 300.0
LONGEST_COMMAND = 4096
BOGUS_COMMANDS = 20
NOTE_USE_EVERY = 60.0
READ_SIZE = 256 * 1024
END = b"\r\n.\r\n"

_PATH = re.compile(r"\s*<(?:@[^:>]*:)?([^>]*)>\s*(.*)", re.DOTALL)
_BARE = re.compile(r"\s*([^\s<>]+)\s*(.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass
class Office:
    """What all sessions of a submission process share."""

    settings: Settings
    db: Database
    acceptor: Acceptor
    look_ups: Executor
    brake: Brake = field(default_factory=Brake)
    known: Known = field(default_factory=Known)
    sessions: "set[Session]" = field(default_factory=set)
    data_bytes: int = 0
    """Of mails being received right now, over all sessions."""
    noted: dict[int, float] = field(default_factory=dict)
    stopping: bool = False


def parse_path(text: str) -> tuple[str, str] | None:
    """The address and the parameters of `FROM:` or `TO:`; None when it is not an address."""
    found = _PATH.fullmatch(text) or _BARE.fullmatch(text)
    if found is None:
        return None
    address, parameters = found.group(1).strip(), found.group(2).strip()
    if _CONTROL.search(address) or len(address) > 320 or " " in address.split("@")[-1]:
        return None
    return address, parameters


class Session(SMTP):
    """One connection of a site's mail program."""

    session: AioSession
    envelope: Envelope
    transport: asyncio.Transport | None

    line_length_limit = LONGEST_LINE

    def __init__(self, office: Office, tls: ssl.SSLContext | None) -> None:
        settings = office.settings
        # Not SMTP.__init__: it builds tables of commands and hooks by inspection, for every
        # connection anew, and that costs more than all the rest of a small mail.
        self.loop = asyncio.get_running_loop()
        asyncio.StreamReaderProtocol.__init__(
            self,
            asyncio.StreamReader(loop=self.loop, limit=LONGEST_LINE),
            client_connected_cb=self._cb_client_connected,
            loop=self.loop,
        )
        self.hostname = settings.hostname
        self.tls_context = tls
        self.transport = None
        self._handle_hooks = {}
        self._handler_coroutine = None
        self._original_transport = None
        self._timeout_handle = None
        self._tls_handshake_okay = True
        self._tls_protocol = None
        self._needs_tls = tls is not None and not settings.allow_plain_auth
        self._office = office
        self._submitter: Submitter | None = None
        self._wrong = 0
        self._busy = False
        self._last_word = 0.0
        self._socket: socket.socket | None = None
        self._counted = 0
        self._bogus = 0
        self._has_sender = False

    # -- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket at hand: acknowledgements are asked for after each read."""
        if self._socket is None:
            self._socket = transport.get_extra_info("socket")
            self._office.sessions.add(self)
        self._quick()
        super().connection_made(transport)
        self._submitter = None  # what was said before STARTTLS does not count

    def connection_lost(self, error: Exception | None) -> None:
        """Half a DATA that was being received is forgotten: it was never answered."""
        self._office.sessions.discard(self)
        self._count(-self._counted)
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """PHPMailer writes DATA in small pieces; a delayed ACK would cost it 40 ms a mail."""
        if self._busy:
            self._quick()
        super().data_received(data)

    def _quick(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _reset_timeout(self, duration: float | None = None) -> None:
        """Remember when the client last said something; one timer a connection looks at it."""
        self._last_word = self.loop.time()
        if self._timeout_handle is None:
            self._timeout_handle = self.loop.call_later(COMMAND_TIMEOUT, self._look_at_clock)

    def _look_at_clock(self) -> None:
        silent = self.loop.time() - self._last_word
        if silent >= COMMAND_TIMEOUT:
            self.say("421 4.4.2 Nothing came for too long")
            if self.transport is not None:
                self.transport.close()
            return
        rest = COMMAND_TIMEOUT - silent
        self._timeout_handle = self.loop.call_later(rest, self._look_at_clock)

    async def _handle_client(self) -> None:
        """Greet, then one command after another until either side hangs up."""
        self._write(f"220 {self.hostname} Postroom\r\n".encode())
        try:
            while self.transport is not None:
                await self._next_command()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:  # also when the client hung up, which ends this by cancelling it
            self._hang_up()

    async def _next_command(self) -> None:
        try:
            line = await self._reader.readuntil()
        except asyncio.LimitOverrunError:
            await self._skip_line()
            line = b""
        self._reset_timeout()
        if len(line) > LONGEST_COMMAND:
            line = b""
        name, _, argument = line.rstrip(b"\r\n").partition(b" ")
        command = COMMANDS.get(name.upper())
        if command is None:
            self._bogus += 1
            if self._bogus > BOGUS_COMMANDS:
                self.say("421 4.7.0 Too many commands that are none")
                self._hang_up()
                return
            self.say("500 5.5.2 That is not a command here")
            return
        text = argument.decode("utf-8", "surrogateescape").strip()
        try:
            await command(self, text or None)
        except (ConnectionError, asyncio.IncompleteReadError, TLSSetupException):
            self._hang_up()
        except Exception:  # a bug of ours: the mail stays with the sender, who tries again
            log.exception("a submission session met a bug")
            self.say("451 4.3.0 Something went wrong here: try again later")
        if self.transport is not None and self.transport.get_write_buffer_size() > READ_SIZE:
            await self._writer.drain()

    async def _skip_line(self) -> None:
        """Read on to the end of a line that is longer than any command."""
        while True:
            try:
                await self._reader.readuntil()
            except asyncio.LimitOverrunError as error:
                await self._reader.readexactly(error.consumed)
            else:
                return

    def _hang_up(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def _write(self, raw: bytes) -> None:
        if self.transport is not None:
            self.transport.write(raw)

    def say(self, reply: str) -> None:
        """Answer with one line."""
        self._write(reply.encode("utf-8", "replace") + b"\r\n")

    def say_goodbye(self) -> None:
        """421, at once when nothing is under way, else after the mail in hand."""
        if not self._busy:
            self.say("421 4.3.2 Closing down: come back in a moment")
            self._hang_up()

    # -- EHLO, AUTH

    async def smtp_HELO(self, hostname: str | None) -> None:
        """HELO; AUTH needs EHLO, so nothing else will follow."""
        if not hostname:
            self.say("501 5.5.4 Syntax: HELO hostname")
            return
        self._set_rset_state()
        self.session.extended_smtp = False
        self.session.host_name = hostname
        self.say(f"250 {self.hostname}")

    async def smtp_EHLO(self, hostname: str | None) -> None:
        """EHLO, answered in one piece."""
        if not hostname:
            self.say("501 5.5.4 Syntax: EHLO hostname")
            return
        self._set_rset_state()
        self.session.extended_smtp = True
        self.session.host_name = hostname
        lines = [
            self.hostname,
            f"SIZE {self._office.settings.max_message_bytes}",
            "8BITMIME",
            "SMTPUTF8",
            "PIPELINING",
            "ENHANCEDSTATUSCODES",
        ]
        if self.tls_context and not self._tls_protocol:
            lines.append("STARTTLS")
        if not self._needs_tls or self._tls_protocol:
            lines.append("AUTH PLAIN LOGIN")
        answer = [f"250-{line}" for line in lines[:-1]] + [f"250 {lines[-1]}"]
        self.say("\r\n".join(answer))

    async def smtp_AUTH(self, arg: str | None) -> None:
        """AUTH PLAIN and LOGIN (RFC 4954)."""
        if not self.session.extended_smtp:
            self.say("503 5.5.1 Send EHLO first")
            return
        if self._needs_tls and not self._tls_protocol:
            self.say("538 5.7.11 Use STARTTLS first: this login would travel in clear")
            return
        if self._submitter is not None:
            self.say("503 5.5.1 Already authenticated")
            return
        words = (arg or "").split()
        if not 1 <= len(words) <= 2:
            self.say("501 5.5.4 Syntax: AUTH mechanism [initial-response]")
            return
        mechanism = words[0].upper()
        initial = words[1] if len(words) == 2 else None
        read: dict[str, Callable[[str | None], Coroutine[Any, Any, tuple[str, str] | None]]] = {
            "PLAIN": self._read_plain,
            "LOGIN": self._read_login,
        }
        if mechanism not in read:
            self.say("504 5.5.4 Use AUTH PLAIN or AUTH LOGIN")
            return
        given = await read[mechanism](initial)
        if given is not None:
            await self._check_login(*given)

    async def _read_plain(self, initial: str | None) -> tuple[str, str] | None:
        given = _decode(initial) if initial else await self._challenge(b"")
        if given is None:
            self.say("501 5.5.2 The login could not be decoded")
            return None
        parts = given.split(b"\0")
        if len(parts) != 3:
            self.say("501 5.5.2 The login could not be decoded")
            return None
        return _text(parts[1]), _text(parts[2])

    async def _read_login(self, initial: str | None) -> tuple[str, str] | None:
        login = _decode(initial) if initial else await self._challenge(b"Username:")
        password = None if login is None else await self._challenge(b"Password:")
        if login is None or password is None:
            self.say("501 5.5.2 The login could not be decoded")
            return None
        return _text(login), _text(password)

    async def _challenge(self, words: bytes) -> bytes | None:
        self._write(b"334 " + base64.b64encode(words) + b"\r\n")
        line = (await self._reader.readuntil()).rstrip(b"\r\n")
        return None if line == b"*" else _decode(line.decode("ascii", "replace"))

    async def _check_login(self, username: str, password: str) -> None:
        office, address = self._office, self._address()
        found = office.known.get(username, password, address)
        if found is None:
            found = await self.loop.run_in_executor(
                office.look_ups, authenticate, office.db, username, password, address
            )
            if found is not None:
                office.known.note(username, password, address, found)
        if found is not None:
            self._submitter = found
            self.say("235 2.7.0 Welcome")
            return
        self._wrong += 1
        log.info("a login was refused", login=username[:100], address=address)
        await asyncio.sleep(office.brake.failed(f"login:{username[:100]}", f"address:{address}"))
        if self._wrong >= WRONG_LOGINS:
            self.say("421 4.7.0 Too many wrong logins")
            self._hang_up()
            return
        self.say("535 5.7.8 User name or password is wrong, or was revoked")

    def _address(self) -> str:
        peer = self.session.peer
        return str(peer[0]) if isinstance(peer, tuple) else ""

    # -- the small ones

    async def smtp_STARTTLS(self, arg: str | None) -> None:
        """STARTTLS; everything said before it is forgotten."""
        if arg or self.tls_context is None or self._tls_protocol is not None:
            self.say("503 5.5.1 STARTTLS is not offered here")
            return
        await super().smtp_STARTTLS("")

    async def push(self, status: str | bytes) -> None:
        """What aiosmtpd's STARTTLS answers by."""
        self.say(status if isinstance(status, str) else status.decode())

    async def smtp_NOOP(self, arg: str | None) -> None:
        """NOOP."""
        self.say("250 2.0.0 OK")

    async def smtp_RSET(self, arg: str | None) -> None:
        """RSET: forget the mail under way, keep the login."""
        self._set_rset_state()
        self.say("250 2.0.0 Forgotten")

    async def smtp_QUIT(self, arg: str | None) -> None:
        """QUIT."""
        self.say("221 2.0.0 Bye")
        self._hang_up()
        self.transport = None

    async def smtp_VRFY(self, arg: str | None) -> None:
        """VRFY, which tells nothing (RFC 5321, 3.5.3)."""
        self.say("252 2.1.5 Send it and see")

    # -- the envelope

    def _set_rset_state(self) -> None:
        self._has_sender = False
        super()._set_rset_state()  # type: ignore[no-untyped-call]

    def _set_post_data_state(self) -> None:
        self._has_sender = False
        super()._set_post_data_state()  # type: ignore[no-untyped-call]

    async def _allowed(self) -> bool:
        """Whether a transaction command may come now; answers when not."""
        if not self.session.host_name:
            self.say("503 5.5.1 Send EHLO first")
        elif self._submitter is None:
            self.say("530 5.7.0 Authentication required")
        else:
            return True
        return False

    async def smtp_MAIL(self, arg: str | None) -> None:
        """MAIL FROM, with SIZE, BODY and SMTPUTF8."""
        if not await self._allowed():
            return
        if self._has_sender:
            self.say("503 5.5.1 A mail is under way: finish it or send RSET")
            return
        path = parse_path(arg[5:]) if arg and arg[:5].upper() == "FROM:" else None
        if path is None:
            self.say("501 5.1.7 Syntax: MAIL FROM:<address>")
            return
        address, parameters = path
        problem = self._mail_parameters(parameters.upper().split())
        if problem is None and not self._office.acceptor.has_room():
            problem = FULL
        if problem is None and address and not self._may_send_as(address):
            problem = f"550 5.7.1 This login may not send as {address}"
        if problem is not None:
            self.say(problem)
            return
        self.envelope.mail_from = address
        self._has_sender = True
        self.say("250 2.1.0 Sender taken")

    def _mail_parameters(self, parameters: list[str]) -> str | None:
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name == "SIZE" and value.isdigit():
                if int(value) > self._office.settings.max_message_bytes:
                    return self._too_large()
                if not self._room_for(int(value)):
                    return "452 4.3.1 Too much mail is being received: try again in a moment"
                if not self._office.acceptor.has_room(int(value)):
                    return FULL
            elif name not in {"BODY", "AUTH", "SMTPUTF8"}:
                return f"555 5.5.4 Unknown parameter {name[:40]}"
        return None

    def _too_large(self) -> str:
        most = self._office.settings.max_message_bytes // (1024 * 1024)
        return f"552 5.3.4 The mail is too large: at most {most} MB"

    def _may_send_as(self, address: str) -> bool:
        return self._submitter is not None and self._submitter.may_send_as(address)

    async def smtp_RCPT(self, arg: str | None) -> None:
        """RCPT TO; an address given twice gets the mail once."""
        if not await self._allowed():
            return
        if not self._has_sender:
            self.say("503 5.5.1 Send MAIL FROM first")
            return
        path = parse_path(arg[3:]) if arg and arg[:3].upper() == "TO:" else None
        if path is None:
            self.say("501 5.1.3 Syntax: RCPT TO:<address>")
            return
        address, parameters = path
        local, _, domain = address.rpartition("@")
        if parameters:
            self.say("555 5.5.4 RCPT takes no parameters here")
        elif not local or not domain:
            self.say("553 5.1.3 The address needs a name and a domain")
        elif len(self.envelope.rcpt_tos) >= self._office.settings.max_recipients:
            self.say("452 4.5.3 Too many recipients: send the rest in another mail")
        else:
            if address not in self.envelope.rcpt_tos:
                self.envelope.rcpt_tos.append(address)
            self.say("250 2.1.5 Recipient taken")

    # -- the mail

    async def smtp_DATA(self, arg: str | None) -> None:
        """DATA: read, store, and only then answer 250."""
        if not await self._allowed():
            return
        if not self.envelope.rcpt_tos:
            self.say("503 5.5.1 Send RCPT TO first")
            return
        self._busy = True
        self._quick()
        self.say("354 End data with <CR><LF>.<CR><LF>")
        try:
            content, problem = await self._receive()
            answer = problem or await self._accept(content)
            self._set_post_data_state()
            self.say(answer)
        finally:
            self._busy = False
            self._count(-self._counted)
        if self._office.stopping:
            self.say_goodbye()

    async def _receive(self) -> tuple[bytes, str | None]:
        """The mail with its dots unstuffed, or the reply that refuses it once it has all come.

        Only CRLF.CRLF ends the data; a line feed alone never does.
        """
        data = bytearray(b"\r\n")  # so that a lone dot in the first line ends it, too
        problem: str | None = None
        while True:
            searched = max(0, len(data) - len(END) + 1)
            piece = await self._reader.read(READ_SIZE)
            if not piece:
                raise ConnectionResetError
            self._reset_timeout()
            data += piece
            end = data.find(END, searched)
            if end >= 0:
                rest = bytes(data[end + len(END) :])
                if rest:  # the next commands of a pipelining client
                    self._reader._buffer[:0] = rest  # type: ignore[attr-defined]
                del data[end + 2 :]
                break
            self._count(len(piece))
            if problem is None:
                problem = self._overflow(len(data))
            if problem is not None:
                self._count(-self._counted)
                del data[: -len(END)]
        if problem is None and len(data) > self._office.settings.max_message_bytes:
            problem = self._too_large()
        if problem is None and _longest_line(data) > LONGEST_LINE:
            problem = "500 5.5.2 A line is longer than 64 KB"
        if problem is not None:
            return b"", problem
        if b"\r\n." in data:
            data = data.replace(b"\r\n.", b"\r\n")
        return bytes(data[2:]), None

    def _overflow(self, size: int) -> str | None:
        if size > self._office.settings.max_message_bytes:
            return self._too_large()
        if self._office.data_bytes > self._office.settings.max_data_memory_bytes:
            return "452 4.3.1 Too much mail is being received: try again in a moment"
        return None

    def _room_for(self, size: int) -> bool:
        return self._office.data_bytes + size <= self._office.settings.max_data_memory_bytes

    def _count(self, size: int) -> None:
        self._counted += size
        self._office.data_bytes += size

    async def _accept(self, content: bytes) -> str:
        submitter = self._submitter
        assert submitter is not None
        if submitter.senders:
            asked = facts_of(content).from_email
            if asked and not submitter.may_send_as(asked):
                return f"550 5.7.1 This login may not send as {asked}"
        submission = Submission(
            site_id=submitter.site_id,
            credential_id=submitter.credential_id,
            source=Source.SMTP,
            mail_from=self.envelope.mail_from or "",
            recipients=tuple(self.envelope.rcpt_tos),
            raw=content,
            received=self._received(submitter),
        )
        try:
            accepted = await self._office.acceptor.submit_async(submission)
        except NotAccepted as refusal:
            return refusal.reply
        self._note_use(submitter)
        return f"250 2.0.0 queued as {accepted.queue_id}"

    def _received(self, submitter: Submitter) -> dict[str, str]:
        secure = self.session.ssl
        tls = secure["ssl_object"].version() if secure else ""
        return {
            "from": f"{self.session.host_name} ([{self._address()}])",
            "with": "ESMTPSA" if secure else "ESMTPA",
            "login": submitter.username,
            "address": self._address(),
            "tls": tls or "",
        }

    def _note_use(self, submitter: Submitter) -> None:
        office, now = self._office, self.loop.time()
        if now - office.noted.get(submitter.credential_id, -NOTE_USE_EVERY) < NOTE_USE_EVERY:
            return
        office.noted[submitter.credential_id] = now
        with suppress(RuntimeError):  # closing down: the mail is stored, and that is what counts
            office.look_ups.submit(note_use, office.db, submitter.credential_id, self._address())


def _longest_line(data: bytearray) -> int:
    if len(data) <= LONGEST_LINE:
        return 0
    longest, start = 0, 0
    while start < len(data):
        end = data.find(b"\r\n", start)
        end = len(data) if end < 0 else end
        longest = max(longest, end - start)
        start = end + 2
    return longest


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


COMMANDS: dict[bytes, Callable[[Session, str | None], Coroutine[Any, Any, None]]] = {
    b"HELO": Session.smtp_HELO,
    b"EHLO": Session.smtp_EHLO,
    b"STARTTLS": Session.smtp_STARTTLS,
    b"AUTH": Session.smtp_AUTH,
    b"MAIL": Session.smtp_MAIL,
    b"RCPT": Session.smtp_RCPT,
    b"DATA": Session.smtp_DATA,
    b"NOOP": Session.smtp_NOOP,
    b"RSET": Session.smtp_RSET,
    b"VRFY": Session.smtp_VRFY,
    b"QUIT": Session.smtp_QUIT,
}


class Full(asyncio.Protocol):
    """Says that there are too many connections, and hangs up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """421 and goodbye."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"421 4.3.2 Too many connections: try again in a moment\r\n")
        transport.close()


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The certificate for STARTTLS; raises OSError or ssl.SSLError when it cannot be used."""
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return context


class SubmissionServer:
    """The listener; `start`, then `stop` within a running event loop."""

    def __init__(self, settings: Settings, db: Database, acceptor: Acceptor) -> None:
        self.office = Office(
            settings=settings,
            db=db,
            acceptor=acceptor,
            look_ups=ThreadPoolExecutor(2, thread_name_prefix="login"),
        )
        self._tls = tls_context(settings)
        self._server: asyncio.Server | None = None

    def _protocol(self) -> asyncio.Protocol:
        office = self.office
        if office.stopping or len(office.sessions) >= office.settings.max_submission_connections:
            return Full()
        session: asyncio.Protocol = Session(office, self._tls)
        return session

    async def start(self) -> None:
        """Listen."""
        listen = self.office.settings.submission_listen
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, listen.host, listen.port, backlog=1024
        )

    async def stop(self, patience: float = 20.0) -> None:
        """Take no more connections, say 421, and let the mails in hand be answered."""
        self.office.stopping = True
        if self._server is not None:
            self._server.close()
        for session in list(self.office.sessions):
            session.say_goodbye()
        until = asyncio.get_running_loop().time() + patience
        while self.office.sessions and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)
        self.office.look_ups.shutdown(wait=False)
