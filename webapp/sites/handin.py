"""How a site is told where to hand in its mail: ready-made settings for common programs."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from webapp.config import Settings

ANY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not listened on


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where submission is reached from outside, and whether it offers TLS."""

    host: str
    port: int
    tls: bool
    this_machine_only: bool


@dataclass(frozen=True, kw_only=True)
class Login:
    """What a program signs in with, and an address it may send from."""

    username: str
    password: str
    sender: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings to paste. `slug` tells them apart, `name` and `where` are for the reader."""

    slug: str
    name: str
    where: str
    text: str


def place(settings: Settings) -> Place:
    """The address for other programs; with a certificate it is the name the certificate is for."""
    listen = settings.submission_listen
    tls = settings.tls_cert is not None
    by_name = tls or listen.host in ANY_ADDRESS
    return Place(
        host=settings.hostname if by_name else listen.host,
        port=listen.port,
        tls=tls,
        this_machine_only=listen.is_loopback,
    )


def example_sender(senders: Sequence[str], admin_email: str) -> str:
    """An address that a login with these allowed senders may send from."""
    for pattern in senders:
        return pattern.replace("*", "shop", 1)
    return admin_email or "shop@example.org"


def recipes(where: Place, login: Login) -> list[Recipe]:
    """The same settings for each program, the most common one first."""
    return [
        Recipe(slug="wp", name="WP Mail SMTP", where="wp-config.php", text=_wp(where, login)),
        Recipe(slug="php", name="PHPMailer", where="PHP", text=_php(where, login)),
        Recipe(slug="python", name="smtplib", where="Python", text=_python(where, login)),
        Recipe(slug="curl", name="curl", where="", text=_curl(where, login)),
    ]


def _wp(where: Place, login: Login) -> str:
    lines = {
        "WPMS_ON": "true",
        "WPMS_MAILER": "'smtp'",
        "WPMS_SMTP_HOST": _php_text(where.host),
        "WPMS_SMTP_PORT": str(where.port),
        "WPMS_SSL": "'tls'" if where.tls else "''",
        "WPMS_SMTP_AUTH": "true",
        "WPMS_SMTP_AUTOTLS": "true" if where.tls else "false",
        "WPMS_SMTP_USER": _php_text(login.username),
        "WPMS_SMTP_PASS": _php_text(login.password),
    }
    return "\n".join(f"define( '{name}', {value} );" for name, value in lines.items())


def _php(where: Place, login: Login) -> str:
    return "\n".join(
        (
            "$mail = new PHPMailer\\PHPMailer\\PHPMailer(true);",
            "$mail->isSMTP();",
            f"$mail->Host = {_php_text(where.host)};",
            f"$mail->Port = {where.port};",
            f"$mail->SMTPSecure = {_php_text('tls' if where.tls else '')};",
            f"$mail->SMTPAutoTLS = {'true' if where.tls else 'false'};",
            "$mail->SMTPAuth = true;",
            f"$mail->Username = {_php_text(login.username)};",
            f"$mail->Password = {_php_text(login.password)};",
        )
    )


def _python(where: Place, login: Login) -> str:
    lines = [
        "import smtplib",
        "from email.message import EmailMessage",
        "",
        "mail = EmailMessage()",
        f'mail["From"], mail["To"] = {login.sender!r}, "you@example.org"',
        'mail["Subject"] = "Hello"',
        'mail.set_content("It works.")',
        "",
        f"with smtplib.SMTP({where.host!r}, {where.port}) as server:",
        f"    server.login({login.username!r}, {login.password!r})",
        "    server.send_message(mail)",
    ]
    if where.tls:
        lines.insert(0, "import ssl")
        lines.insert(-2, "    server.starttls(context=ssl.create_default_context())")
    return "\n".join(lines)


def _curl(where: Place, login: Login) -> str:
    host = f"[{where.host}]" if ":" in where.host else where.host
    sender = login.sender.replace("%", "%%")  # it stands in a format of printf
    mail = f"From: {sender}\\nTo: you@example.org\\nSubject: Hello\\n\\nIt works.\\n"
    parts = [
        f"printf {shlex.quote(mail)} | curl smtp://{host}:{where.port}",
        *(["--ssl-reqd"] if where.tls else []),
        f"--user {shlex.quote(f'{login.username}:{login.password}')}",
        f"--mail-from {shlex.quote(login.sender)}",
        "--mail-rcpt you@example.org",
        "--upload-file -",
    ]
    return " \\\n  ".join(parts)


def _php_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
