"""A mail and a mailer with good defaults."""

from datetime import timedelta

from webapp.mailers.base import Envelope, Surroundings
from webapp.mailers.smtp import Encryption, Smtp

CONTENT = b"From: a@example.com\r\nTo: b@example.com\r\nSubject: hello\r\n\r\nhello\r\n"


def to(*recipients: str, mail_from: str = "a@example.com") -> Envelope:
    return Envelope(mail_from=mail_from, recipients=recipients or ("b@example.com",))


def around(
    *, ca_file: str | None = None, patience: float = 10, last_patience: float = 10
) -> Surroundings:
    """Patience in seconds, for each step and for the answer to the whole mail."""
    return Surroundings(
        hostname="postroom.test",
        ca_file=ca_file,
        timeout=timedelta(seconds=patience),
        answer_timeout=timedelta(seconds=last_patience),
    )


def a_mailer(port: int, **settings: object) -> Smtp:
    """Plain and without login unless told otherwise."""
    plain = {"encryption": Encryption.NONE, "authentication": "username" in settings}
    return Smtp(**{"host": "127.0.0.1", "port": port} | plain | settings)
