"""How a site is told where to hand in its mail: ready-made settings for common programs."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def api_recipes(url: str, key: str, sender: str, slug: str) -> list[Recipe]:
    """How to hand in mail by HTTP in each language, and the way in for PHP's mail()."""
    to = f"{url}/api/v1/messages"
    mail: Mail = {
        "from": sender,
        "to": ["you@example.org"],
        "subject": "Hello",
        "text": "It works.",
    }
    return [
        Recipe(slug="api-curl", name="curl", where="", text=_api_curl(to, key, mail)),
        Recipe(slug="api-python", name="urllib", where="Python", text=_api_python(to, key, mail)),
        Recipe(slug="api-php", name="curl", where="PHP", text=_api_php(to, key, mail)),
        Recipe(slug="api-node", name="fetch", where="Node", text=_api_node(to, key, mail)),
        Recipe(slug="api-mail", name="mail()", where="php.ini", text=sendmail_path(slug)),
    ]


def sendmail_path(slug: str) -> str:
    """The line of php.ini by which mail() hands in mail here; for programs of this machine."""
    command = shlex.quote(str(Path(sys.executable).with_name("postroom")))
    return f'sendmail_path = "{command} sendmail -t -i --site {slug}"'


Mail = Mapping[str, object]


def _api_curl(url: str, key: str, mail: Mail) -> str:
    parts = [
        f"curl {shlex.quote(url)}",
        f"--header {shlex.quote(f'Authorization: Bearer {key}')}",
        "--header 'Content-Type: application/json'",
        f"--data {shlex.quote(json.dumps(mail, ensure_ascii=False))}",
    ]
    return " \\\n  ".join(parts)


def _api_python(url: str, key: str, mail: Mail) -> str:
    lines = [
        "import json",
        "import urllib.request",
        "import uuid",
        "",
        "mail = {",
        *(f"    {json.dumps(name)}: {value!r}," for name, value in mail.items()),
        "}",
        "request = urllib.request.Request(",
        f"    {url!r},",
        "    data=json.dumps(mail).encode(),",
        "    headers={",
        f'        "Authorization": {f"Bearer {key}"!r},',
        '        "Content-Type": "application/json",',
        '        "Idempotency-Key": str(uuid.uuid4()),  # the same one when you try again',
        "    },",
        ")",
        "with urllib.request.urlopen(request) as answer:",
        "    print(json.load(answer))",
    ]
    return "\n".join(lines)


def _api_php(url: str, key: str, mail: Mail) -> str:
    lines = [
        "$mail = [",
        *(f"    {_php_text(name)} => {_php_value(value)}," for name, value in mail.items()),
        "];",
        f"$request = curl_init({_php_text(url)});",
        "curl_setopt_array($request, [",
        "    CURLOPT_RETURNTRANSFER => true,",
        "    CURLOPT_HTTPHEADER => [",
        f"        {_php_text(f'Authorization: Bearer {key}')},",
        "        'Content-Type: application/json',",
        "        // the same one when you try again",
        "        'Idempotency-Key: ' . bin2hex(random_bytes(16)),",
        "    ],",
        "    CURLOPT_POSTFIELDS => json_encode($mail),",
        "]);",
        "echo curl_exec($request);",
    ]
    return "\n".join(lines)


def _php_value(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_php_text(str(one)) for one in value) + "]"
    return _php_text(str(value))


def _api_node(url: str, key: str, mail: Mail) -> str:
    lines = [
        f"const answer = await fetch({json.dumps(url)}, {{",
        '  method: "POST",',
        "  headers: {",
        f"    Authorization: {json.dumps(f'Bearer {key}')},",
        '    "Content-Type": "application/json",',
        "    // the same one when you try again",
        '    "Idempotency-Key": crypto.randomUUID(),',
        "  },",
        "  body: JSON.stringify({",
        *(f"    {name}: {json.dumps(value, ensure_ascii=False)}," for name, value in mail.items()),
        "  }),",
        "});",
        "console.log(await answer.json());",
    ]
    return "\n".join(lines)


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
