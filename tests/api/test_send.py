"""Handing in mail: what is stored, what is refused and how, and what a repeat is answered."""

import base64
import email
import email.policy
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.message import EmailMessage
from typing import Any

import pytest
import sqlalchemy as sa

from tests.api.conftest import Desk, Program, a_letter
from tests.factories import a_connection
from webapp.api import service
from webapp.api.models import Idempotency
from webapp.api.service import Office
from webapp.delivery.content import stored_mail
from webapp.delivery.models import Message, Recipient, Source, State
from webapp.delivery.tally import accounts
from webapp.ingress.accept import NotAccepted, Once, Submission
from webapp.problems import MEDIA_TYPE
from webapp.sites.models import Mode, Site


def stored(desk: Desk, queue_id: str) -> tuple[Message, list[str], EmailMessage]:
    with desk.installation.db.read() as session:
        row = session.scalars(sa.select(Message).where(Message.queue_id == queue_id)).one()
        to = session.scalars(
            sa.select(Recipient.address)
            .where(Recipient.message_id == row.id)
            .order_by(Recipient.position)
        ).all()
        raw = stored_mail(session, row.id)
    assert raw is not None
    mail = email.message_from_bytes(raw, policy=email.policy.SMTP)
    assert isinstance(mail, EmailMessage)
    return row, list(to), mail


def count(desk: Desk) -> int:
    with desk.installation.db.read() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(Message)) or 0


def faults(answer: Any, status: int, kind: str) -> list[tuple[str, str]]:
    """Where a problem says that it is wrong, and what."""
    assert answer.status_code == status, answer.text
    assert answer.content_type == MEDIA_TYPE
    assert answer.json["status"] == status
    assert answer.json["type"].endswith(f"/api#{kind}")
    return [
        (one.get("pointer", one.get("parameter")), one["detail"])
        for one in answer.json.get("errors", ())
    ]


# ---- what is stored ----


def test_a_mail_in_json_is_stored_as_a_mail(desk: Desk, program: Program) -> None:
    answer = program.post(
        "/messages",
        a_letter(
            to=["mara@agentur.example", {"email": "jo@agentur.example", "name": "Jo, der Ältere"}],
            cc="cc@agentur.example",
            bcc=["Blind <bcc@agentur.example>"],
            reply_to="help@lindenhof.example",
            html="<p>Vielen Dank.</p>",
            headers={"List-Unsubscribe": "<https://lindenhof.example/u/1>", "X-Wort": "Grüße"},
        ),
    )
    assert answer.status_code == 202
    assert answer.json["status"] == "queued"
    assert answer.json["url"].endswith(f"/api/v1/messages/{answer.json['id']}")
    row, to, mail = stored(desk, answer.json["id"])
    assert (row.source, row.state, row.site_id) == (Source.API, State.QUEUED, desk.site.id)
    assert (row.mail_from, row.lane_id) == ("shop@lindenhof.example", desk.connection.lane_id)
    assert to == [
        "mara@agentur.example", "jo@agentur.example", "cc@agentur.example", "bcc@agentur.example",
    ]  # fmt: skip
    assert mail["From"] == "Lindenhof <shop@lindenhof.example>"
    assert mail["To"].addresses[1].display_name == "Jo, der Ältere"
    assert (mail["Cc"], mail["Bcc"]) == ("cc@agentur.example", None)
    assert mail["Reply-To"] == "help@lindenhof.example"
    assert mail["List-Unsubscribe"] == "<https://lindenhof.example/u/1>"
    assert mail["X-Wort"] == "Grüße"
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]


def test_a_mail_of_html_only_has_one_part(desk: Desk, program: Program) -> None:
    letter = a_letter(html="<p>Grüße</p>")
    del letter["text"]
    _row, _to, mail = stored(desk, program.post("/messages", letter).json["id"])
    assert (mail.get_content_type(), mail.get_content().strip()) == ("text/html", "<p>Grüße</p>")


def test_files_arrive_as_they_were(desk: Desk, program: Program) -> None:
    bits = bytes(range(256)) * 50
    packed = base64.b64encode(bits).decode()
    queue_id = program.send(
        html="<img src='cid:logo'>",
        attachments=[
            {"filename": "Rechnung für Müller.pdf", "content_base64": packed},
            {"filename": "data.bin", "content_base64": packed, "content_type": "text/csv; x=y"},
            {"filename": "logo.png", "content_base64": packed, "content_id": "logo"},
            {"filename": "empty", "content_base64": ""},
        ],
    )
    row, _to, mail = stored(desk, queue_id)
    files = [part for part in mail.walk() if part.get_filename()]
    found = {part.get_filename(): part for part in files}
    assert row.has_attachments
    assert {name: part.get_content_type() for name, part in found.items()} == {
        "logo.png": "image/png",
        "Rechnung für Müller.pdf": "application/pdf",
        "data.bin": "text/csv",
        "empty": "application/octet-stream",
    }
    assert found["data.bin"].get_param("x") == "y"
    assert found["logo.png"]["Content-ID"] == "<logo>"
    assert found["logo.png"].get_content_disposition() == "inline"
    for name in ("logo.png", "Rechnung für Müller.pdf", "data.bin"):
        assert found[name].get_payload(decode=True) == bits
    assert found["empty"].get_payload(decode=True) == b""


RAW = (
    b"From: Shop <shop@lindenhof.example>\r\nTo: Mara <mara@agentur.example>\r\n"
    b"Cc: cc@agentur.example\r\nBcc: bcc@agentur.example\r\nSubject: Roh\r\n\r\nHallo\r\n"
)
MIME = {"Content-Type": "message/rfc822"}


def test_a_raw_mail_goes_to_everybody_it_names(desk: Desk, program: Program) -> None:
    answer = program.post("/messages", data=RAW, headers=MIME)
    assert answer.status_code == 202
    row, to, _mail = stored(desk, answer.json["id"])
    assert to == ["mara@agentur.example", "cc@agentur.example", "bcc@agentur.example"]
    assert row.mail_from == "shop@lindenhof.example"
    with desk.installation.db.read() as session:
        assert stored_mail(session, row.id) == RAW


def test_the_envelope_of_a_raw_mail_can_be_said(desk: Desk, program: Program) -> None:
    envelope = {
        "X-Postroom-Mail-From": "bounces@lindenhof.example",
        "X-Postroom-Rcpt-To": "a@agentur.example, <b@agentur.example>,a@agentur.example",
    }
    answer = program.post("/messages", data=RAW, headers=MIME | envelope)
    row, to, _mail = stored(desk, answer.json["id"])
    assert (row.mail_from, to) == (
        "bounces@lindenhof.example",
        ["a@agentur.example", "b@agentur.example"],
    )
    nobody = program.post("/messages", data=RAW, headers=MIME | {"X-Postroom-Mail-From": "<>"})
    assert stored(desk, nobody.json["id"])[0].mail_from == ""


def test_a_mail_leaves_by_the_connection_it_asks_for(desk: Desk, program: Program) -> None:
    with desk.installation.db.write() as session:
        other = a_connection(session, session.get_one(Site, desk.site.id), primary=False)
    queue_id = program.send(connection=other.uid)
    row, _to, _mail = stored(desk, queue_id)
    assert (row.connection_id, row.lane_id, row.why) == (
        other.id, other.lane_id, {"code": "asked"},
    )  # fmt: skip
    raw = program.post("/messages", data=RAW, headers=MIME | {"X-Postroom-Connection": other.uid})
    assert stored(desk, raw.json["id"])[0].connection_id == other.id


def test_a_site_that_sends_nothing_takes_mail_all_the_same(desk: Desk, program: Program) -> None:
    with desk.installation.db.write() as session:
        session.get_one(Site, desk.site.id).mode = Mode.DO_NOT_SEND
    answer = program.post("/messages", a_letter(), headers={"Idempotency-Key": "x"})
    again = program.post("/messages", a_letter(), headers={"Idempotency-Key": "x"})
    assert answer.json["status"] == "blocked"
    assert again.json == answer.json


# ---- what is refused ----

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"from": "nobody"}, "/from"),
    ({"from": "a@b.example\r\nBcc: x@y.example"}, "/from"),
    ({"from": {"email": "a@b.example", "name": "A\r\nBcc: x@y.example"}}, "/from/name"),
    ({"from": None}, "/from"),
    ({"to": []}, "/to"),
    ({"to": ["mara@agentur.example", "x"]}, "/to/1"),
    ({"to": [{"email": "x"}]}, "/to/0/email"),
    ({"to": "x"}, "/to"),
    ({"cc": 5}, "/cc"),
    ({"subject": "Hallo\nBcc: x@y.example"}, "/subject"),
    ({"subject": 5}, "/subject"),
    ({"text": None}, ""),
    ({"headers": {"Bcc": "x@y.example"}}, "/headers/Bcc"),
    ({"headers": {"Content-Type": "text/html"}}, "/headers/Content-Type"),
    ({"headers": {"X-A: b\r\nX-C": "d"}}, "/headers/X-A: b\r\nX-C"),
    ({"headers": {"X-A/~": "d"}}, "/headers/X-A~1~0"),
    ({"headers": {"X-A": "b\r\nBcc: x@y.example"}}, "/headers/X-A"),
    ({"attachments": [{"filename": "a.txt", "content_base64": "%"}]},
     "/attachments/0/content_base64"),
    ({"attachments": [{"filename": "../a", "content_base64": ""}]}, "/attachments/0/filename"),
    ({"attachments": [{"filename": "a\r\nb", "content_base64": ""}]}, "/attachments/0/filename"),
    ({"attachments": [{"filename": "a", "content_base64": "", "content_type": "multipart/x"}]},
     "/attachments/0/content_type"),
    ({"attachments": [{"filename": "a", "content_base64": "", "content_type": "a/b\r\nX: y"}]},
     "/attachments/0/content_type"),
    ({"attachments": [{"filename": "a", "content_base64": "", "content_id": "a b"}]},
     "/attachments/0/content_id"),
    ({"attachments": [{"filename": "a"}]}, "/attachments/0/content_base64"),
    ({"attachments": {}}, "/attachments"),
    ({"connection": "nowhere"}, "/connection"),
    ({"conection": "x"}, "/conection"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "pointer"), WRONG, ids=lambda one: repr(one)[:50])
def test_a_wrong_field_is_named(light_desk: Desk, wrong: dict[str, Any], pointer: str) -> None:
    answer = light_desk.program().post("/messages", a_letter(**wrong))
    assert [where for where, _what in faults(answer, 422, "invalid")] == [pointer]
    assert count(light_desk) == 0


def test_every_wrong_field_is_named_at_once(light_desk: Desk) -> None:
    answer = light_desk.program().post("/messages", {"from": "x", "to": ["y"], "z": 1})
    assert [where for where, _what in faults(answer, 422, "invalid")] == ["/from", "/to/0", "/z"]


def test_what_was_sent_is_never_repeated(light_desk: Desk) -> None:
    secret = "hunter2-and-more"
    letter = a_letter(
        attachments=[{"filename": 5, "content_base64": secret, "content_type": secret}],
        headers={"X-Token": f"{secret}\n"},
        connection=secret,
        subject=f"{secret}\n",
    )
    answer = light_desk.program().post("/messages", letter)
    assert answer.status_code == 422
    assert secret not in answer.text


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"{", "unreadable", 400),
        (b"", "unreadable", 400),
        (b'{"from": "\xff"}', "unreadable", 400),
        (b'{"text": "\\ud800"}', "unreadable", 400),
        (b"[" * 100_000, "unreadable", 400),
        (b"[]", "invalid", 422),
        (b"5", "invalid", 422),
    ],
)
def test_what_is_not_a_json_object_is_refused(
    light_desk: Desk, data: bytes, kind: str, status: int
) -> None:
    json = {"Content-Type": "application/json"}
    answer = light_desk.program().post("/messages", data=data, headers=json)
    faults(answer, status, kind)


def test_other_kinds_of_body_are_refused(light_desk: Desk) -> None:
    program = light_desk.program()
    faults(program.post("/messages", data={"from": "a"}), 415, "media-type")
    zipped = {"Content-Encoding": "gzip"}
    faults(program.post("/messages", a_letter(), headers=zipped), 415, "media-type")


@pytest.mark.parametrize(
    ("raw", "headers", "where"),
    [
        (b"", {}, ""),
        (b"From: a@b.example\r\n\r\nHallo", {}, "X-Postroom-Rcpt-To"),
        (RAW, {"X-Postroom-Rcpt-To": "nobody"}, "X-Postroom-Rcpt-To"),
        (RAW, {"X-Postroom-Rcpt-To": " , "}, "X-Postroom-Rcpt-To"),
        (RAW, {"X-Postroom-Mail-From": "nobody"}, "X-Postroom-Mail-From"),
        (RAW, {"X-Postroom-Connection": "nowhere"}, "X-Postroom-Connection"),
        (RAW + b"x" * 70_000, {}, ""),
    ],
)
def test_a_raw_mail_that_cannot_be_sent_is_refused(
    light_desk: Desk, raw: bytes, headers: dict[str, str], where: str
) -> None:
    answer = light_desk.program().post("/messages", data=raw, headers=MIME | headers)
    assert [found for found, _what in faults(answer, 422, "invalid")] == [where]


def test_a_mail_that_goes_in_circles_is_refused(light_desk: Desk) -> None:
    raw = b"Received: from a by b\r\n" * 21 + RAW
    faults(light_desk.program().post("/messages", data=raw, headers=MIME), 422, "hops")


def test_too_many_recipients_are_refused(light_desk: Desk) -> None:
    many = [f"a{number}@agentur.example" for number in range(1001)]
    answer = light_desk.program().post("/messages", a_letter(to=many))
    assert [where for where, _what in faults(answer, 422, "invalid")] == ["/to"]
    assert light_desk.program().send(to=many[:1000])


def smaller(desk: Desk, monkeypatch: pytest.MonkeyPatch, **values: int) -> None:
    """The installation with other limits."""
    frame = desk.app.extensions["postroom"]
    settings = frame.installation.settings.model_copy(update=values)
    object.__setattr__(frame.installation, "settings", settings)
    desk.app.extensions["postroom.api"].settings = settings


def test_what_is_too_large_is_refused(light_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    smaller(light_desk, monkeypatch, max_message_bytes=10_000)
    program = light_desk.program()
    faults(program.post("/messages", a_letter(text="x" * 20_000)), 413, "too-large")
    faults(program.post("/messages", a_letter(text="x" * 11_000)), 413, "too-large")
    faults(program.post("/messages", data=RAW + b"x\r\n" * 5000, headers=MIME), 413, "too-large")
    assert program.send(text="x" * 5000)


def test_there_is_no_more_memory_than_there_is(
    light_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller(light_desk, monkeypatch, max_data_memory_bytes=100)
    answer = light_desk.program().post("/messages", a_letter())
    faults(answer, 503, "busy")
    assert answer.headers["Retry-After"] == "5"


@pytest.mark.parametrize(
    ("reply", "status", "kind"),
    [
        ("452 4.3.1 The disk is full: try again later", 507, "disk-full"),
        ("451 4.3.0 The mail could not be stored: try again later", 503, "busy"),
        ("554 5.4.6 Too many hops", 422, "hops"),
    ],
)
def test_what_cannot_be_stored_is_not_answered_202(
    light_desk: Desk, monkeypatch: pytest.MonkeyPatch, reply: str, status: int, kind: str
) -> None:
    def refuse(*_: object) -> None:
        raise NotAccepted(reply)

    monkeypatch.setattr("webapp.ingress.accept.prepare", refuse)
    faults(light_desk.program().post("/messages", a_letter()), status, kind)


def test_a_full_disk_is_said_before_the_mail_is_read(
    light_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = light_desk.app.extensions["postroom.api"]
    monkeypatch.setattr(office.acceptor, "has_room", lambda size=0: False)
    faults(light_desk.program().post("/messages", a_letter()), 507, "disk-full")


def test_a_connection_of_another_site_cannot_be_asked_for(desk: Desk, program: Program) -> None:
    other = desk.other_site()
    with desk.installation.db.write() as session:
        foreign = a_connection(session, session.get_one(Site, other.id))
        bare = a_connection(session, session.get_one(Site, desk.site.id), primary=False)
        bare.lane_id = None
    for uid in (foreign.uid, bare.uid):
        answer = program.post("/messages", a_letter(connection=uid))
        assert [where for where, _what in faults(answer, 422, "invalid")] == ["/connection"]


# ---- the same again ----


def test_a_repeat_is_answered_as_the_first_time(desk: Desk, program: Program) -> None:
    key = {"Idempotency-Key": "order-1"}
    first = program.post("/messages", a_letter(), headers=key)
    again = program.post("/messages", a_letter(), headers=key)
    assert (again.status_code, again.json) == (202, first.json)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert count(desk) == 1
    other = program.post("/messages", a_letter(subject="Anders"), headers=key)
    faults(other, 409, "key-used")
    assert count(desk) == 1


def test_twenty_repeats_at_once_store_one_mail(desk: Desk, program: Program) -> None:
    key = {"Idempotency-Key": "order-2"}

    def hand_in(_: int) -> tuple[int, Any]:
        answer = program.post("/messages", a_letter(), headers=key)
        return answer.status_code, answer.json["id"]

    with ThreadPoolExecutor(20) as threads:
        answers = set(threads.map(hand_in, range(20)))
    assert len(answers) == 1
    assert count(desk) == 1
    with desk.installation.db.reader.connect() as connection:
        assert [one.gap for one in accounts(connection)] == [0]


def a_submission(desk: Desk, name: Once) -> Submission:
    return Submission(
        site_id=desk.site.id,
        credential_id=name.credential_id,
        source=Source.API,
        mail_from="a@b.example",
        recipients=("c@d.example",),
        raw=RAW,
        received={},
        once=name,
    )


def test_two_processes_store_one_mail(desk: Desk, program: Program) -> None:
    """Each with an acceptor of its own, as several web processes have."""
    submitter = desk.app.extensions["postroom.api"].submitter(program.key, "127.0.0.1")
    assert submitter is not None
    offices = [Office(settings=desk.installation.settings, db=desk.installation.db)
               for _ in range(4)]  # fmt: skip
    names = [service.once(submitter, f"key {number}", b"body") for number in range(10)]
    answers = [
        office.acceptor.submit(a_submission(desk, name)) for name in names for office in offices
    ]
    found = {answer.result(30).queue_id for answer in answers}
    for office in offices:
        office.close()
    assert len(found) == count(desk) == 10


def test_a_name_belongs_to_its_key(desk: Desk, program: Program) -> None:
    name = {"Idempotency-Key": "order-3"}
    ids = {
        one.post("/messages", a_letter(), headers=name).json["id"]
        for one in (program, desk.program(), desk.program(site=desk.other_site()))
    }
    assert len(ids) == 3


def test_a_refused_request_does_not_use_up_its_name(desk: Desk, program: Program) -> None:
    name = {"Idempotency-Key": "order-4"}
    faults(program.post("/messages", a_letter(to="x"), headers=name), 422, "invalid")
    assert program.post("/messages", a_letter(), headers=name).status_code == 202


@pytest.mark.parametrize("key", ["", " ", "x" * 256])
def test_a_name_has_a_length(light_desk: Desk, key: str) -> None:
    answer = light_desk.program().post("/messages", a_letter(), headers={"Idempotency-Key": key})
    assert [where for where, _what in faults(answer, 422, "invalid")] == ["Idempotency-Key"]


def test_the_envelope_is_part_of_the_request(desk: Desk, program: Program) -> None:
    name = MIME | {"Idempotency-Key": "x" * 255}
    assert program.post("/messages", data=RAW, headers=name).status_code == 202
    other = name | {"X-Postroom-Rcpt-To": "other@agentur.example"}
    faults(program.post("/messages", data=RAW, headers=other), 409, "key-used")


def test_a_name_counts_for_a_day(desk: Desk, program: Program) -> None:
    name = {"Idempotency-Key": "order-5"}
    first = program.post("/messages", a_letter(), headers=name).json["id"]
    past = desk.installation.db.now() - timedelta(hours=1)
    with desk.installation.db.write() as session:
        session.execute(sa.update(Idempotency).values(expires_at=past))
    second = program.post("/messages", a_letter(subject="Neu"), headers=name)
    assert second.status_code == 202
    assert second.json["id"] != first


def test_old_names_are_dropped_in_batches(desk: Desk, program: Program) -> None:
    for number in range(5):
        name = {"Idempotency-Key": f"order-{number}"}
        program.post("/messages", a_letter(), headers=name)
    db = desk.installation.db
    with db.write_connection() as connection:
        assert service.drop_old_keys(connection, db.now()) == 0
        tomorrow = db.now() + timedelta(hours=25)
        assert [service.drop_old_keys(connection, tomorrow, most=3) for _ in range(3)] == [3, 2, 0]
