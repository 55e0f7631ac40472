"""Accepting: durable, grouped, and every mail accounted for."""

import zlib
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.world import World, a_mail
from webapp.delivery.models import Content, Message, Source, State
from webapp.delivery.wake import Listener
from webapp.ingress.accept import Acceptor, NotAccepted, Submission, prepare


def a_submission(site: int, raw: bytes, *recipients: str) -> Submission:
    return Submission(
        site_id=site,
        credential_id=None,
        source=Source.SMTP,
        mail_from="shop@example.com",
        recipients=recipients or ("kunde@example.org",),
        raw=raw,
        received={},
    )


def test_the_mail_is_kept_byte_for_byte(world: World) -> None:
    site = world.a_site()
    raw = a_mail() + bytes(range(256))
    queue_id = world.accept(site, raw=raw)
    with world.db.read() as session:
        kept = session.scalar(
            sa.select(Content.raw).join(Message).where(Message.queue_id == queue_id)
        )
    assert zlib.decompress(kept) == raw


def test_what_the_log_shows_is_found_out_at_once(world: World) -> None:
    site = world.a_site()
    world.a_connection(site)
    queue_id = world.accept(site, "a@x.example", "b@x.example", raw=a_mail("Größe ✓"))
    message = world.message(queue_id)
    assert (message.subject, message.from_email) == ("Größe ✓", "shop@example.com")
    assert (message.to_line, message.recipient_count) == ("a@x.example, b@x.example", 2)
    assert message.why == {"code": "primary"}
    assert len(queue_id) == 16


def test_a_crowd_is_stored_in_fewer_commits_than_mails(world: World, acceptor: Acceptor) -> None:
    site = world.a_site()
    commits = []
    sa.event.listen(world.db.writer, "commit", lambda connection: commits.append(1))
    answers = [acceptor.submit(a_submission(site, a_mail())) for _ in range(100)]
    ids = {answer.result(20).queue_id for answer in answers}
    assert len(ids) == 100
    assert len(commits) < 60
    assert world.gaps() == 0


def test_one_mail_that_cannot_be_stored_does_not_take_others_along(
    world: World, acceptor: Acceptor
) -> None:
    site = world.a_site()
    with world.db.hold():  # so that all three come in one group
        good = acceptor.submit(a_submission(site, a_mail()))
        bad = acceptor.submit(a_submission(site, a_mail(), "x" * 5_000_000 + "@example.org"))
        stranger = acceptor.submit(a_submission(site + 99, a_mail()))
    last = acceptor.submit(a_submission(site, a_mail()))
    assert good.result(20).state == last.result(20).state == State.QUEUED
    with pytest.raises(NotAccepted, match=r"^451 4\.3\.0"):
        stranger.result(20)
    if world.db.is_sqlite:
        assert bad.result(20)
    else:
        with pytest.raises(NotAccepted, match=r"^451 4\.3\.0"):
            bad.result(20)
    assert world.gaps() == 0


def test_a_commit_that_only_seems_to_have_failed_stores_a_mail_once(
    world: World, acceptor: Acceptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost after the commit went through."""
    commit = world.db.writer.dialect.do_commit
    failing: list[bool] = []

    def commit_and_fail(connection: object) -> None:
        commit(connection)
        if failing:
            failing.clear()
            raise sa.exc.OperationalError("COMMIT", {}, Exception("connection lost"))

    monkeypatch.setattr(world.db.writer.dialect, "do_commit", commit_and_fail)
    site = world.a_site()
    failing.append(True)
    answer = acceptor.submit(a_submission(site, a_mail())).result(20)
    with world.db.read() as session:
        assert session.scalars(sa.select(Message.queue_id)).all() == [answer.queue_id]
    assert world.gaps() == 0


def test_a_mail_that_runs_in_circles_is_refused(world: World) -> None:
    hops = b"".join(
        b"Received: from a by b; Mon, 23 Nov 2026 15:00:00 +0100\r\n" for _ in range(21)
    )
    with pytest.raises(NotAccepted, match=r"^554 5\.4\.6"):
        prepare(a_submission(1, hops + a_mail()))
    prepare(a_submission(1, hops[: len(hops) * 20 // 21] + a_mail()))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n\r\nonly a body",
        b"no headers at all",
        a_mail().replace(b"utf-8", b"no-such-charset"),
        a_mail().replace(b"Message-ID: <", b"Message-ID: <[a@b]> <"),
        a_mail().replace(b"text/plain; charset=utf-8", b'multipart/mixed; boundary="x"'),
        b"Subject: a\0b\r\n\r\nc\0d",
        b"Subject: \xff\xfe\x80\r\nFrom: \xe4\xf6\xfc\r\n\r\n\xff",
        b"Subject: =?utf-8?b?7aCA?=\r\n\r\nlone surrogate",
    ],
)
def test_hostile_mail_is_taken_as_it_is(world: World, raw: bytes) -> None:
    site = world.a_site()
    queue_id = world.accept(site, raw=raw)
    with world.db.read() as session:
        kept = session.scalar(
            sa.select(Content.raw).join(Message).where(Message.queue_id == queue_id)
        )
    assert zlib.decompress(kept) == raw
    assert world.gaps() == 0


def test_the_worker_is_woken(world: World, acceptor: Acceptor, tmp_path: Path) -> None:
    listener = Listener(tmp_path)
    listener.socket.settimeout(1)  # it was sent before the answer
    acceptor.submit(a_submission(world.a_site(), a_mail())).result(20)
    listener.wait()
    listener.close()
