"""`postroom connection`."""

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from tests.factories import a_connection, a_lane, a_message, a_site, an_app, an_installation
from webapp.audit import AuditEvent
from webapp.cli import postroom
from webapp.connections.models import Backup, Connection
from webapp.connections.service import load_mailer
from webapp.delivery.models import Lane, Message, State
from webapp.installation import Installation
from webapp.mailers import registry
from webapp.mailers.smtp import Encryption, Smtp
from webapp.microsoft.models import OAuthApp
from webapp.microsoft.service import secret_of
from webapp.sites.models import Site

CREATE = ("connection", "create", "shop", "--mailer", "smtp", "--set", "host=127.0.0.1")


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """An installation with a site, that commands open too."""
    url = f"sqlite:///{tmp_path / 'postroom.db'}"
    made = an_installation(url, tmp_path)
    monkeypatch.setenv("POSTROOM_INSTANCE", str(made.settings.instance))
    monkeypatch.setenv("POSTROOM_DATABASE_URL", url)
    with made.db.write() as session:
        a_site(session, slug="shop")
    return made


def run(*arguments: str, typed: str = "") -> Result:
    result = CliRunner().invoke(postroom, arguments, input=typed)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def made(*arguments: str, typed: str = "") -> dict[str, Any]:
    result = run(*arguments, "--json", typed=typed)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def stored(installation: Installation) -> tuple[Connection, Smtp, Lane]:
    with installation.db.read() as session:
        found = session.scalars(sa.select(Connection)).one()
        lane = session.get_one(Lane, found.lane_id)
    mailer = load_mailer(found, installation.keyring)
    assert isinstance(mailer, Smtp)
    return found, mailer, lane


def test_without_a_user_name_there_is_no_login_and_the_rest_are_defaults(
    installation: Installation,
) -> None:
    answer = made(*CREATE)
    found, mailer, lane = stored(installation)
    assert answer["id"] == found.uid
    assert mailer == Smtp(
        host="127.0.0.1", port=587, encryption=Encryption.TLS, authentication=False
    )
    assert (found.from_email, found.force_from_email) == ("", False)
    assert (lane.concurrency, lane.per_minute, lane.per_hour, lane.per_day) == (None,) * 4
    assert answer["primary"] is False


def test_a_password_comes_from_a_file_or_from_standard_input(
    installation: Installation, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("from a file\n")
    login = (*CREATE, "--set", "username=me")
    by_file = made(*login, "--set", f"password=@{file}")
    by_input = made(*login, "--set", "password=-", typed="typed in\n")
    with installation.db.read() as session:
        found = {each.uid: each for each in session.scalars(sa.select(Connection))}
    passwords = []
    for answer in (by_file, by_input):
        mailer = load_mailer(found[answer["id"]], installation.keyring)
        assert isinstance(mailer, Smtp)
        assert mailer.authentication
        passwords.append(mailer.password)
    assert passwords == ["from a file", "typed in"]
    assert "from a file" not in json.dumps([by_file, by_input])


def test_a_primary_connection_takes_the_waiting_mail(installation: Installation) -> None:
    with installation.db.write() as session:
        a_message(session, session.scalars(sa.select(Site)).one(), state=State.QUEUED)
    answer = made(*CREATE, "--primary", "--from-email", "a@b.example", "--name", "Relay")
    assert answer["waiting"] == 1
    found, _mailer, _lane = stored(installation)
    assert (found.from_email, found.force_from_email, found.nickname) == (
        "a@b.example",
        True,
        "Relay",
    )
    with installation.db.read() as session:
        assert session.scalars(sa.select(Site)).one().primary_connection_id == found.id
        assert session.scalars(sa.select(Message)).one().connection_id == found.id
    (listed,) = json.loads(run("connection", "list", "shop", "--json").stdout)
    assert (listed["id"], listed["primary"], listed["health"]) == (found.uid, True, "unknown")
    assert "primary" in run("connection", "list", "shop").stdout
    (one_of_all,) = json.loads(run("connection", "list", "--json").stdout)
    assert (one_of_all["id"], one_of_all["site"]) == (found.uid, "shop")


def test_forcing_the_from_can_be_left_off(installation: Installation) -> None:
    made(*CREATE, "--from-email", "a@b.example", "--no-force-from")
    assert stored(installation)[0].force_from_email is False


def test_limits_that_are_not_named_stay_as_the_lane_has_them(installation: Installation) -> None:
    with installation.db.write() as session:
        a_lane(session, "smtp:@127.0.0.1:587", per_minute=5, per_day=9)
    limits = ("--per-minute", "30", "--per-day", "none", "--recipients-per-day", "2000")
    made(*CREATE, *limits, "--concurrency", "2")
    lane = stored(installation)[2]
    assert (lane.concurrency, lane.per_minute, lane.per_hour, lane.per_day) == (2, 30, None, None)
    assert lane.recipients_per_day == 2000


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--per-minute", "0"), 65, "per_minute: 0 would stop all mail"),
        (("--per-hour", "many"), 65, "per_hour: Enter a whole number"),
        (("--set", "port=70000"), 65, "port: Enter a port from 1 to 65535."),
        (("--set", "port=0"), 65, "port: Enter a port"),
        (("--set", "port=x"), 65, "port: Enter a whole number."),
        (("--set", "encryption=rot13"), 65, "encryption: Choose one of the values"),
        (("--set", "colour=red"), 65, "colour: There is no setting of this name."),
        (("--set", "host"), 64, "write it as NAME=VALUE"),
        (("--set", "username=me", "--set", "password=secret"), 64, "password=@FILE"),
        (("--set", "password=@/nowhere/at/all"), 66, "cannot be read"),
        (("--from-email", "me"), 65, "from_email: Enter an email address"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_stored(
    installation: Installation, arguments: tuple[str, ...], code: int, said: str
) -> None:
    result = run(*CREATE, *arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert said in result.stderr
    assert "secret" not in result.stderr
    with installation.db.read() as session:
        assert session.scalar(sa.select(Connection.id)) is None


def test_a_site_or_a_mailer_that_is_not_there_is_refused(installation: Installation) -> None:
    assert run("connection", "list", "other").exit_code == 67
    assert run("connection", "create", "other", *CREATE[3:]).exit_code == 67
    pigeon = run("connection", "create", "shop", "--mailer", "pigeon")
    assert pigeon.exit_code == 64
    assert f"there are: {', '.join(registry())}" in pigeon.stderr


# ---- 365 / Outlook ----

OUTLOOK = ("connection", "create", "shop", "--mailer", "outlook")
CLIENT_ID = "3f1c2d84-9a07-4e51-8a3b-6d2f0c9b71e5"


def test_an_outlook_connection_is_made_by_the_shared_registration_and_linked_by_a_person(
    installation: Installation,
) -> None:
    with installation.db.write() as session:
        app = an_app(session, installation.keyring)
        a_message(session, session.scalars(sa.select(Site)).one(), state=State.QUEUED)
    answer = made(*OUTLOOK, "--primary")
    with installation.db.read() as session:
        found = session.scalars(sa.select(Connection)).one()
        assert session.scalars(sa.select(Site)).one().primary_connection_id == found.id
    assert found.settings["outlook"] == {"one_click": True, "shared_app": app.uid}
    assert (found.lane_id, found.grant_id) == (None, None)
    address = f"{installation.settings.url}/sites/shop/connections/{found.uid}/link"
    assert answer["link"] == address
    assert "/link" in run(*OUTLOOK).stdout


def test_an_outlook_connection_brings_a_registration_of_its_own(
    installation: Installation, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text("Xy7~abcdefghijklmnopqrstuvwxyz0123456789\n")
    own = ("--set", f"client_id={CLIENT_ID}", "--set", f"client_secret=@{file}")
    answer = made(*OUTLOOK, *own, "--set", "cloud=china", "--set", "tenant=contoso.example")
    with installation.db.read() as session:
        app = session.scalars(sa.select(OAuthApp)).one()
        found = session.scalars(sa.select(Connection)).one()
    assert (app.connection_id, app.client_id) == (found.id, CLIENT_ID)
    assert (app.cloud, app.tenant) == ("china", "contoso.example")
    assert secret_of(app, installation.keyring) == "Xy7~abcdefghijklmnopqrstuvwxyz0123456789"
    assert found.settings["outlook"]["one_click"] is False
    assert "Xy7" not in json.dumps(answer)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--per-minute", "30"), 64, "limits belong to the mailbox"),
        (("--set", "client_secret=typed"), 64, "client_secret=@FILE"),
        (("--set", "client_id=x"), 65, "client_id: Enter the Application (client) ID"),
        (("--set", "client_id=", "--set", "tenant=?"), 65, "tenant: Enter the Directory"),
        (("--set", f"client_id={CLIENT_ID}", "--set", "one_click=true"), 64, "one_click=true"),
        (("--set", "shared_app=nothing"), 65, "no registration with this id"),
        (("--set", "host=x"), 65, "There is no setting of this name."),
        ((), 65, "shared_app: Name one of"),
    ],
)
def test_an_outlook_connection_that_cannot_be_made_leaves_nothing(
    installation: Installation, arguments: tuple[str, ...], code: int, said: str
) -> None:
    with installation.db.write() as session:
        apps = [an_app(session, installation.keyring, name=name) for name in ("One", "Two")]
    result = run(*OUTLOOK, *arguments)
    assert result.exit_code == code
    assert said in result.stderr
    with installation.db.read() as session:
        assert session.scalar(sa.select(Connection.id)) is None
        assert session.scalar(sa.select(sa.func.count(OAuthApp.id))) == len(apps)


# ---- primary, backups, gone ----


def a_pair(installation: Installation) -> tuple[Connection, Connection]:
    """Two connections of the site, the first of which it sends by."""
    with installation.db.write() as session:
        site = session.scalars(sa.select(Site)).one()
        settings = {"authentication": False}
        one = a_connection(session, site, nickname="One", settings=settings)
        two = a_connection(session, site, nickname="Two", primary=False, settings=settings)
        a_message(session, site, connection=one)
    return one, two


def test_another_connection_becomes_primary_and_the_first_stands_in(
    installation: Installation,
) -> None:
    one, two = a_pair(installation)
    done = run("connection", "set-primary", "shop", two.uid)
    assert (done.exit_code, done.stdout) == (
        0,
        "The site sends by it now.\nWaiting mails that now leave by Two: 1.\n",
    )
    assert run("connection", "backup", "shop").exit_code == 64
    assert run("connection", "backup", "shop", one.uid, two.uid).exit_code == 0
    listed = json.loads(run("connection", "list", "shop", "--json").stdout)
    assert [(row["primary"], row["backup"], row["shared"]) for row in listed] == [
        (False, 1, False),
        (True, 2, False),
    ]
    assert "primary, backup 2" in run("connection", "list", "shop").stdout
    assert run("connection", "backup", "shop", "--none").exit_code == 0
    with installation.db.read() as session:
        assert session.scalars(sa.select(Backup)).all() == []
        actions = session.scalars(sa.select(AuditEvent.action).order_by(AuditEvent.id)).all()
    assert actions == [
        "primary connection changed",
        "backup connections changed",
        "backup connections changed",
    ]


def test_a_connection_is_deleted_after_its_uses_were_told(installation: Installation) -> None:
    one, _two = a_pair(installation)
    asked = run("connection", "delete", one.uid, typed="n\n")
    assert asked.exit_code == 1
    assert "primary connection of shop\nwaiting mails: 1\n" in asked.stdout
    assert run("connection", "delete", one.uid, "--yes").exit_code == 0
    assert [row["name"] for row in json.loads(run("connection", "list", "--json").stdout)] == [
        "Two"
    ]
    assert run("connection", "delete", one.uid, "--yes").exit_code == 67
    assert run("connection", "set-primary", "shop", one.uid).exit_code == 67
