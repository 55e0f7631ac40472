"""SMTP servers on loopback for tests: one that obeys a script, and a real one (aiosmtpd)."""

from __future__ import annotations

import contextlib
import hmac
import socket
import ssl
import struct
import threading
from base64 import b64decode, b64encode
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session

from tests.rig.ports import free_port


class Move(Enum):
    """What a server may do instead of answering."""

    CLOSE = auto()
    RESET = auto()
    HANG = auto()
    DRIP = auto()  # lines for ever, each soon enough, but never the last one


Answer = str | bytes | Move


@dataclass
class Mail:
    """A mail the server took: `raw` as it came (without the final dot), `content` undotted."""

    mail: str
    rcpts: list[str]
    raw: bytes
    secure: bool
    login: str

    @property
    def content(self) -> bytes:
        lines = self.raw.split(b"\r\n")
        return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)


class _Gone(Exception):
    """This session is over."""


@dataclass(kw_only=True)
class FakeSmtp:
    """A polite SMTP server until told otherwise.

    `always[what]` answers every time, `then(what, ...)` the next times, one by one. `what` is a
    verb (EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA, RSET, QUIT), GREETING, "RCPT name@host" for one
    recipient, CONTENT for what happens after the first bytes of it, DOT for the answer to it all.
    """

    extensions: tuple[str, ...] = ("SIZE 50000000", "8BITMIME")
    tls: ssl.SSLContext | None = None
    implicit: bool = False
    mechanisms: str = ""
    logins: dict[str, str] = field(default_factory=dict)
    always: dict[str, Answer] = field(default_factory=dict)

    mails: list[Mail] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self._next: dict[str, deque[Answer]] = defaultdict(deque)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._stopped = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def then(self, what: str, *answers: Answer) -> None:
        self._next[what].extend(answers)

    def verbs(self) -> list[str]:
        return [command.split(" ")[0] for command in self.commands]

    def hang_up(self) -> None:
        """Close every connection there is, as a server does after a while."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> FakeSmtp:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.hang_up()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        session = _Session(self, sock)
        with contextlib.suppress(_Gone, OSError):
            session.run()
        session.sock.close()


class _Session:
    def __init__(self, server: FakeSmtp, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.buffer = b""
        self.secure = False
        self.login = ""
        self.mail = ""
        self.rcpts: list[str] = []

    def run(self) -> None:
        if self.server.implicit:
            self.start_tls()
        self.say("GREETING", "220 fake ESMTP")
        while True:
            line = self.line()
            verb = line.split(" ")[0].upper()
            self.server.commands.append(line)
            getattr(self, f"on_{verb.lower()}", self.on_unknown)(line)

    def on_unknown(self, line: str) -> None:
        self.say(line.split(" ")[0], "502 5.5.1 what?")

    def on_ehlo(self, line: str) -> None:
        offered = [*self.server.extensions]
        if self.server.tls and not self.secure:
            offered.append("STARTTLS")
        if self.server.mechanisms:
            offered.append(f"AUTH {self.server.mechanisms}")
        lines = ["fake greets you", *offered]
        text = [f"250{'-' if n < len(lines) - 1 else ' '}{word}" for n, word in enumerate(lines)]
        self.say("EHLO", "\n".join(text))

    def on_helo(self, line: str) -> None:
        self.say("HELO", "250 fake")

    def on_starttls(self, line: str) -> None:
        if self.say("STARTTLS", "220 go ahead").startswith("220"):
            self.start_tls()

    def start_tls(self) -> None:
        assert self.server.tls is not None
        self.sock = self.server.tls.wrap_socket(self.sock, server_side=True)
        self.server._sockets.append(self.sock)
        self.secure = True

    def on_auth(self, line: str) -> None:
        mechanism, *initial = line.split(" ")[1:]
        if self.scripted("AUTH"):
            self.say("AUTH", "")
            return
        user, password = getattr(self, f"auth_{mechanism.lower().replace('-', '_')}")(initial)
        good = bool(user) and self.server.logins.get(user) == password
        self.login = user if good else ""
        self.put("235 2.7.0 welcome" if good else "535 5.7.8 bad user name or password")

    def auth_plain(self, initial: list[str]) -> tuple[str, str]:
        if not initial:
            self.put("334 ")
            initial = [self.line()]
        _, user, password = b64decode(initial[0]).decode().split("\0")
        return user, password

    def auth_login(self, initial: list[str]) -> tuple[str, str]:
        self.put("334 " + b64encode(b"Username:").decode())
        user = b64decode(self.line()).decode()
        self.put("334 " + b64encode(b"Password:").decode())
        return user, b64decode(self.line()).decode()

    def auth_cram_md5(self, initial: list[str]) -> tuple[str, str]:
        self.put("334 " + b64encode(b"<1.2@fake>").decode())
        user, digest = b64decode(self.line()).decode().split(" ")
        password = self.server.logins.get(user, "")
        expected = hmac.new(password.encode(), b"<1.2@fake>", "md5").hexdigest()
        return user, password if digest == expected else ""

    def on_mail(self, line: str) -> None:
        self.mail, self.rcpts = line, []
        self.say("MAIL", "250 2.1.0 sender ok")

    def on_rcpt(self, line: str) -> None:
        address = line[line.index("<") + 1 : line.rindex(">")]
        what = f"RCPT {address}"
        answer = self.say(what if self.scripted(what) else "RCPT", "250 2.1.5 recipient ok")
        if answer.startswith("250"):
            self.rcpts.append(address)

    def on_data(self, line: str) -> None:
        if not self.say("DATA", "354 go on").startswith("354"):
            return
        if self.scripted("CONTENT"):
            self.fill()
            self.say("CONTENT", "")
        while b"\r\n.\r\n" not in self.buffer:
            self.fill()
        raw, self.buffer = self.buffer.split(b"\r\n.\r\n", 1)
        mail = Mail(self.mail, self.rcpts, raw + b"\r\n", self.secure, self.login)
        number = len(self.server.mails)
        self.say("DOT", f"250 2.0.0 Ok: queued as FAKE{number}", mail)

    def on_rset(self, line: str) -> None:
        self.say("RSET", "250 2.0.0 forgotten")

    def on_quit(self, line: str) -> None:
        self.say("QUIT", "221 2.0.0 bye")
        raise _Gone

    def scripted(self, what: str) -> bool:
        return bool(self.server._next.get(what)) or what in self.server.always

    def say(self, what: str, usual: str, mail: Mail | None = None) -> str:
        queued = self.server._next.get(what)
        answer = queued.popleft() if queued else self.server.always.get(what, usual)
        if mail is not None and not (isinstance(answer, str) and answer[:1] in "45"):
            self.server.mails.append(mail)
        if answer is Move.HANG:
            self.server._stopped.wait(20)
            raise _Gone
        while answer is Move.DRIP and not self.server._stopped.wait(0.02):
            self.put("250-wait")
        if answer is Move.RESET:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if isinstance(answer, Move):
            raise _Gone
        if isinstance(answer, bytes):
            self.sock.sendall(answer)
            return ""
        self.put(answer)
        if answer.startswith("421"):
            raise _Gone
        return answer

    def put(self, text: str) -> None:
        if text:
            self.sock.sendall(text.replace("\n", "\r\n").encode() + b"\r\n")

    def fill(self) -> None:
        received = self.sock.recv(65536)
        if not received:
            raise _Gone
        self.buffer += received

    def line(self) -> str:
        while b"\r\n" not in self.buffer:
            self.fill()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line.decode()


@dataclass
class Kept:
    """What the real server took."""

    envelopes: list[Envelope] = field(default_factory=list)
    logins: dict[str, str] = field(default_factory=dict)

    async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
        self.envelopes.append(envelope)
        return "250 2.0.0 OK queued as REAL1"

    def authenticate(
        self, server: object, session: Session, envelope: Envelope, mechanism: str, data: object
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        name, password = data.login.decode(), data.password.decode()
        return AuthResult(success=self.logins.get(name) == password)


@contextlib.contextmanager
def a_real_server(
    tls: ssl.SSLContext, logins: dict[str, str], *excluded: str
) -> Iterator[tuple[int, Kept]]:
    """aiosmtpd that asks for STARTTLS and a login; gives its port and what it kept."""
    kept = Kept(logins=logins)
    controller = Controller(
        kept,
        hostname="127.0.0.1",
        port=free_port(),
        tls_context=tls,
        require_starttls=True,
        auth_required=True,
        authenticator=kept.authenticate,
        auth_exclude_mechanism=excluded,
        enable_SMTPUTF8=True,
        decode_data=False,
    )
    controller.start()
    try:
        yield controller.port, kept
    finally:
        controller.stop()
