"""One SMTP connection, command by command.

smtplib says hello and reads the list of extensions. Reading replies and writing are ours: smtplib
(3.11 to 3.13) sets no bound on the length or the duration of a reply, tells a timeout, a closed
connection and a garbled answer apart only by their text, and signs in with ASCII passwords only.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import select
import smtplib
import socket
import ssl
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from webapp.mailers.errors import Cause, Misconfigured
from webapp.mailers.smtp_replies import Reply, readable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_MAX_REPLY = 64 * 1024
_BLOCK = 64 * 1024

_LINE_END = re.compile(rb"\r\n|\r|\n")
_REPLY = re.compile(rb"(?:[2-5]\d\d-[^\n]*\n)*[2-5]\d\d(?:[^-\d\n][^\n]*)?\n")
_CONTINUED = re.compile(rb"[2-5]\d\d-")
# TLS against a port that does not speak it, or no version or cipher in common: only a person can
# change that, while a handshake cut short may be a passing trouble.
_NO_COMMON_TLS = frozenset(
    {
        "HTTP_REQUEST",
        "NO_PROTOCOLS_AVAILABLE",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNKNOWN_PROTOCOL",
        "UNSUPPORTED_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)


class Lost(Exception):
    """The connection is of no more use; whether that matters depends on what was under way."""

    def __init__(self, cause: Cause, words: str, code: str = "") -> None:
        super().__init__(words)
        self.cause = cause
        self.words = words
        self.code = code


def connect(host: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection; raises Lost."""
    place = f"{host}:{port}"
    try:
        sock = socket.create_connection((host, port), timeout)
    except (socket.gaierror, UnicodeError) as error:
        raise Lost(Cause.DNS, f"{_reason(error)} ({host})") from error
    except TimeoutError as error:
        raise Lost(Cause.TIMEOUT, f"no connection within {timeout:g} s ({place})") from error
    except OSError as error:
        raise Lost(Cause.CONNECT, f"{_reason(error)} ({place})") from error
    # The dot goes out in a write of its own: with Nagle it would wait for a delayed ACK.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def secure(sock: socket.socket, host: str, ca_file: str | None) -> ssl.SSLSocket:
    """The connection under TLS, certificate and host name verified; raises Misconfigured, Lost."""
    try:
        context = _tls_context(ca_file)
    except OSError as error:
        sock.close()
        words = f"the trusted certificates cannot be read: {_reason(error)}"
        raise Misconfigured(words, cause_code=Cause.TLS) from error
    try:
        return context.wrap_socket(sock, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        words = f"certificate verify failed: {error.verify_message} ({host})"
        raise Misconfigured(words, cause_code=Cause.TLS) from error
    except TimeoutError as error:
        raise Lost(Cause.TIMEOUT, "TLS handshake: no answer in time") from error
    except ssl.SSLError as error:
        words = f"TLS handshake failed: {error.reason or _reason(error)} ({host})"
        if error.reason in _NO_COMMON_TLS:
            raise Misconfigured(words, cause_code=Cause.TLS) from error
        raise Lost(Cause.TLS, words) from error
    except (OSError, ValueError) as error:
        raise Lost(Cause.TLS, f"TLS handshake failed: {_reason(error)} ({host})") from error


@lru_cache(maxsize=8)
def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    # Reading a hundred certificates takes longer than sending the mail.
    return ssl.create_default_context(cafile=ca_file)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def wire_form(content: bytes) -> bytes:
    """The content as it follows DATA, without the final dot: CRLF lines, dots doubled."""
    if not content.count(b"\n") == content.count(b"\r") == content.count(b"\r\n"):
        content = _LINE_END.sub(b"\r\n", content)
    if content.startswith(b"."):
        content = b"." + content
    if b"\n." in content:
        content = content.replace(b"\n.", b"\n..")
    return content if content.endswith(b"\r\n") else content + b"\r\n"


class Wire(smtplib.SMTP):
    """A connected socket that speaks SMTP; every method that uses it raises Lost.

    `secrets` are kept out of the words of whatever is raised.
    """

    def __init__(
        self, sock: socket.socket, hostname: str, timeout: float, secrets: tuple[str, ...] = ()
    ) -> None:
        super().__init__(local_hostname=hostname, timeout=timeout)
        self.command_encoding = "utf-8"
        self.mails = 0
        self._use(sock)
        self._secrets = secrets
        self._unread = b""
        self._doing = "greeting"

    def ask(self, command: str) -> Reply:
        """Send one command and read the answer."""
        self._doing = command.partition(" ")[0]
        return self.respond(command)

    def respond(self, line: str) -> Reply:
        """Send a line that is no command, such as half a password, and read the answer."""
        self.send(f"{line}\r\n")
        return self.read_reply(self.timeout)

    def hello(self) -> Reply:
        """EHLO, or HELO where that is not known."""
        self._doing = "EHLO"
        code, words = self.ehlo()
        if code >= 500:
            code, words = self.helo()
        return Reply(code, b"%d %s" % (code, words))

    def upgrade(self, host: str, ca_file: str | None) -> None:
        """TLS from here on, with everything said before forgotten."""
        if self._unread:
            # RFC 3207: what was slipped in before the handshake must not count after it.
            raise Lost(Cause.PROTOCOL, "STARTTLS: the server spoke before the handshake")
        self._use(secure(self._sock, host, ca_file))
        self.esmtp_features = {}

    def send(self, s: ReadableBuffer | str) -> None:
        """Write a command; an answer that came before its question ends the connection."""
        if self._unread:
            raise self._garbled(self._unread)
        self.write(s.encode(self.command_encoding) if isinstance(s, str) else s)

    def send_body(self, body: bytes) -> None:
        """Write the content, all but the final dot."""
        self._doing = "content"
        self.write(body)

    def end_body(self, timeout: float) -> Reply:
        """Write the final dot and read the answer to the whole mail."""
        self._doing = "end of content"
        self.write(b".\r\n")
        return self.read_reply(timeout)

    def write(self, data: ReadableBuffer) -> None:
        """Write bytes, in blocks that each have the whole timeout."""
        view = memoryview(data)
        try:
            self._wait_at_most(self.timeout)
            for start in range(0, len(view), _BLOCK):
                self._sock.sendall(view[start : start + _BLOCK])
        except OSError as error:
            raise self._lost(error, self.timeout) from error

    def getreply(self) -> tuple[int, bytes]:
        """A reply in smtplib's form, for the commands that are left to it."""
        reply = self.read_reply(self.timeout)
        return reply.code, b"\n".join(line[4:].strip() for line in reply.raw.splitlines())

    def read_reply(self, timeout: float) -> Reply:
        """The next whole reply, all of it within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        remaining = timeout
        data = self._unread
        while (found := _REPLY.match(data)) is None:
            if len(data) > _MAX_REPLY or not _may_become_reply(data):
                raise self._garbled(data)
            try:
                self._wait_at_most(remaining)
                received = self._sock.recv(_BLOCK)
            except OSError as error:
                raise self._lost(error, timeout) from error
            if not received:
                raise Lost(Cause.LOST, f"{self._doing}: the server closed the connection")
            data += received
            remaining = max(deadline - time.monotonic(), 0.001)
        self._unread = data[found.end() :]
        raw = found[0]
        last_line = raw.rfind(b"\n", 0, -1) + 1
        return Reply(int(raw[last_line : last_line + 3]), raw)

    def has_spoken(self) -> bool:
        """True when the server said something, or hung up, without being asked."""
        if self._unread:
            return True
        if not self._readable.poll(0):
            return False
        try:
            self._wait_at_most(0)  # under TLS what came may be no word, but a ticket or a new key
            self._unread = self._sock.recv(_BLOCK)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._sock.close()

    def _use(self, sock: socket.socket) -> None:
        self._sock = sock
        self._set_timeout = -1.0
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    def _wait_at_most(self, seconds: float) -> None:
        if seconds != self._set_timeout:  # a system call, which most reads can do without
            self._sock.settimeout(seconds)
            self._set_timeout = seconds

    def _lost(self, error: OSError, timeout: float) -> Lost:
        if isinstance(error, TimeoutError):
            return Lost(Cause.TIMEOUT, f"{self._doing}: no answer within {timeout:g} s")
        return Lost(Cause.LOST, f"{self._doing}: connection lost, {_reason(error)}")

    def _garbled(self, data: bytes) -> Lost:
        return Lost(Cause.PROTOCOL, readable(data, self._secrets))


def _may_become_reply(data: bytes) -> bool:
    return all(_CONTINUED.match(line) for line in data.split(b"\n")[:-1])


def forms_of_secret(username: str, password: str) -> tuple[str, ...]:
    """All the ways the password could come back in a server's answer, the longest first."""
    if not password:
        return ()
    return (_base64(f"\0{username}\0{password}"), _base64(password), password)


def _base64(text: str) -> str:
    # UTF-8 is what RFC 4616 asks for.
    return base64.b64encode(text.encode()).decode("ascii")


def _auth_plain(wire: Wire, username: str, password: str) -> Reply:
    credentials = _base64(f"\0{username}\0{password}")
    reply = wire.ask(f"AUTH PLAIN {credentials}")
    return wire.respond(credentials) if reply.code == 334 else reply


def _auth_login(wire: Wire, username: str, password: str) -> Reply:
    reply = wire.ask("AUTH LOGIN")
    for answer in (username, password):
        if reply.code != 334:
            return reply
        reply = wire.respond(_base64(answer))
    return reply


def _auth_cram_md5(wire: Wire, username: str, password: str) -> Reply:
    reply = wire.ask("AUTH CRAM-MD5")
    if reply.code != 334:
        return reply
    try:
        challenge = base64.b64decode(reply.raw[4:])
    except binascii.Error as error:
        raise Lost(Cause.PROTOCOL, readable(reply.raw)) from error
    digest = hmac.new(password.encode(), challenge, "md5").hexdigest()
    return wire.respond(_base64(f"{username} {digest}"))


# In the order of preference: under TLS the first two give away no more, and every server has them.
WAYS_TO_SIGN_IN: dict[str, Callable[[Wire, str, str], Reply]] = {
    "PLAIN": _auth_plain,
    "LOGIN": _auth_login,
    "CRAM-MD5": _auth_cram_md5,
}
