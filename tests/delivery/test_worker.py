"""The worker as a whole: real mailer, real server on loopback, both databases."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.factories import a_user, an_installation
from tests.mailers.fakes import FakeSmtp, Mail, Move
from tests.world import World, a_mail
from webapp.accounts.models import UserSession
from webapp.connections import service as connections
from webapp.connections.models import Connection, Health
from webapp.connections.service import FormValues
from webapp.delivery import replan
from webapp.delivery.lanes import Limits
from webapp.delivery.models import Lane, Message, State
from webapp.delivery.ownership import ownership
from webapp.delivery.wake import Waker
from webapp.delivery.worker import Worker
from webapp.installation import Installation
from webapp.mailers.base import Surroundings
from webapp.sites.models import Mode, Site

PATIENCE = 30.0


class Counter(list[Mail]):
    """Takes its time with each mail, and knows how many it ever took at once."""

    def __init__(self, seconds: float = 0.05) -> None:
        super().__init__()
        self.seconds = seconds
        self.most = self.now = 0
        self._lock = threading.Lock()

    def append(self, mail: Mail) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self._lock:
            self.now -= 1
        super().append(mail)


class Post:
    """An installation with a worker, a site and a server that takes its mail."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.world = World(installation.db, now=installation.db.now())
        self.waker = Waker(installation.settings.instance)
        self.site = self.world.a_site()
        self.workers: list[tuple[Worker, threading.Thread]] = []
        self.servers: list[FakeSmtp] = []

    def server(self, **options: object) -> FakeSmtp:
        server = FakeSmtp(**options).__enter__()  # type: ignore[arg-type]
        self.servers.append(server)
        return server

    def connect(
        self, server: FakeSmtp, *, password: str = "", limits: Limits | None = None, **block: object
    ) -> int:
        """Save the site's primary connection, as the page does; returns how many it touched."""
        with self.installation.db.write() as session:
            site = session.get(Site, self.site)
            assert site is not None
            connection = connections.save_connection(
                session,
                self.installation.keyring,
                site,
                connections.primary_connection(session, site),
                FormValues(
                    mailer="smtp",
                    settings={
                        "host": "127.0.0.1",
                        "port": server.port,
                        "encryption": "none",
                        "auto_tls": False,
                        "authentication": bool(password),
                        "username": "me" if password else "",
                    },
                    secrets={"password": password} if password else {},
                    **{"from_email": "", "force_from_email": False, **block},  # type: ignore[arg-type]
                ),
                actor="test",
                now=self.installation.db.now(),
            )
            connections.set_primary(
                session, site, connection, actor="test", now=self.installation.db.now()
            )
            mailer = connections.load_mailer(connection, self.installation.keyring)
            touched = replan.connection_saved(
                session,
                connection,
                lane_key=mailer.lane_key(),
                limits=limits,
                now=self.installation.db.now(),
            )
            return touched + replan.routing_changed(session, site, self.installation.db.now()).moved

    def hand_in(self, count: int = 1, *recipients: str) -> list[str]:
        self.world.now = self.installation.db.now()
        to = recipients or ("kunde@example.org",)
        answers = self.world.accept_many(self.site, [to] * count, a_mail())
        self.waker.wake()
        return [answer.queue_id for answer in answers]

    def surroundings(self) -> Surroundings:
        return Surroundings(
            hostname="postroom.example",
            timeout=timedelta(seconds=5),
            answer_timeout=timedelta(seconds=5),
        )

    def work(self) -> Worker:
        worker = Worker(self.installation, self.surroundings())
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        self.workers.append((worker, thread))
        return worker

    def wait_for(self, what: Callable[[], object]) -> None:
        until = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < until, "it did not happen"
            time.sleep(0.05)  # what it looks at is in the database: not too often

    def states(self) -> list[str]:
        with self.installation.db.read() as session:
            return list(session.scalars(sa.select(Message.state).order_by(Message.id)))

    def queue_ids(self) -> list[str]:
        with self.installation.db.read() as session:
            return list(session.scalars(sa.select(Message.queue_id)))

    def lane(self) -> Lane:
        with self.installation.db.read() as session:
            return session.scalars(
                sa.select(Lane)
                .join(Connection, Connection.lane_id == Lane.id)
                .join(Site, Site.primary_connection_id == Connection.id)
                .where(Site.id == self.site)
            ).one()

    def connection(self) -> Connection:
        with self.installation.db.read() as session:
            return session.scalars(sa.select(Connection)).one()

    def close(self) -> None:
        for worker, _ in self.workers:
            worker.stop()
        for server in self.servers:  # before the workers are awaited: one may wait for an answer
            server.__exit__()
        for _, thread in self.workers:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        self.waker.close()
        self.installation.close()


@pytest.fixture
def post(db_url: str, tmp_path: Path) -> Iterator[Post]:
    made = Post(an_installation(db_url, tmp_path))
    yield made
    made.close()


def test_mail_leaves_as_soon_as_it_came(post: Post) -> None:
    server = post.server()
    post.connect(server)
    post.work()
    post.hand_in(20)
    post.wait_for(lambda: post.states() == [State.SENT] * 20)
    assert len(server.mails) == 20
    assert post.world.gaps() == 0
    assert post.connection().health == Health.WORKING


def test_the_received_line_names_the_queue_id(post: Post) -> None:
    server = post.server()
    post.connect(server)
    post.work()
    (queue_id,) = post.hand_in()
    post.wait_for(lambda: server.mails)
    assert f"id {queue_id}".encode() in server.mails[0].content
    assert b"\r\nBcc:" not in server.mails[0].content


def test_the_from_block_of_the_connection_counts_at_each_attempt(post: Post) -> None:
    server = post.server(always={"MAIL": "451 4.3.0 not now"})
    post.connect(server, from_email="first@example.com", force_from_email=True)
    post.work()
    (queue_id,) = post.hand_in()
    post.wait_for(lambda: post.states() == [State.DEFERRED])
    del server.always["MAIL"]
    post.connect(server, from_email="second@example.com", force_from_email=True)
    post.waker.wake()
    post.wait_for(lambda: server.mails)
    assert server.mails[0].mail.find("second@example.com") >= 0
    assert b"From: Shop <second@example.com>" in server.mails[0].content
    post.wait_for(lambda: post.states() == [State.SENT])
    assert post.world.message(queue_id).sent_from == "second@example.com"


def test_a_limit_on_what_is_under_way_is_exact(post: Post) -> None:
    counter = Counter()
    server = post.server(mails=counter)
    post.connect(server, limits=Limits(concurrency=3))
    post.hand_in(20)
    post.work()
    post.wait_for(lambda: post.states() == [State.SENT] * 20)
    assert counter.most == 3


def test_a_limit_per_minute_is_never_passed(post: Post) -> None:
    server = post.server()
    post.connect(server, limits=Limits(per_minute=5))
    post.hand_in(12)
    post.work()
    post.wait_for(lambda: post.states().count(State.SENT) == 5)
    post.hand_in(1)
    time.sleep(1.5)
    assert post.states().count(State.SENT) == 5
    assert post.states().count(State.QUEUED) == 8


def test_a_refused_login_stops_the_lane_and_loses_nothing(post: Post) -> None:
    server = post.server(mechanisms="PLAIN", logins={"me": "right"})
    post.connect(server, password="wrong", limits=Limits(concurrency=1))
    post.work()
    post.hand_in(5)
    post.wait_for(lambda: post.lane().is_blocked)
    tried = server.connections
    post.hand_in(1)
    time.sleep(1.5)
    assert server.connections <= tried + 1
    assert set(post.states()) <= {State.QUEUED, State.DEFERRED}
    lane = post.lane()
    assert (lane.blocked_kind, lane.blocked_until) == ("needs-reauthorisation", None)
    assert "wrong" not in lane.blocked_words
    assert post.connection().health == Health.NEEDS_REAUTHORISATION
    assert post.connect(server, password="right") == 6
    post.waker.wake()
    post.wait_for(lambda: post.states() == [State.SENT] * 6)
    assert post.connection().health == Health.WORKING
    assert post.world.gaps() == 0


def test_being_asked_to_slow_down_stops_the_lane_for_a_while(post: Post) -> None:
    server = post.server(always={"MAIL": "450 4.7.0 too many messages, rate limited"})
    post.connect(server, limits=Limits(concurrency=1))
    post.work()
    mails = post.hand_in(3)
    post.wait_for(lambda: post.lane().is_blocked)
    lane = post.lane()
    assert lane.blocked_until is not None
    assert [post.world.message(mail).failures for mail in mails] == [0, 0, 0]
    assert lane.blocked_until > post.installation.db.now()
    del server.always["MAIL"]
    with post.installation.db.write() as session:  # what was asked for has passed
        session.execute(sa.update(Lane).values(blocked_until=post.installation.db.now()))
    post.wait_for(lambda: post.states() == [State.SENT] * 3)
    post.wait_for(lambda: not post.lane().is_blocked)


def test_a_stopped_lane_holds_nobody_up(post: Post) -> None:
    stuck = post.server(always={"GREETING": Move.HANG})
    post.connect(stuck)
    post.hand_in(30)
    first = post.site
    post.site = post.world.a_site()
    server = post.server()
    post.connect(server)
    post.work()
    post.wait_for(lambda: stuck.connections)
    post.hand_in(10)
    post.wait_for(lambda: len(server.mails) == 10)
    post.site = first
    assert State.SENT not in post.states()[:30]


def test_an_answer_that_was_lost_is_marked(post: Post) -> None:
    server = post.server()
    server.then("DOT", Move.CLOSE)
    post.connect(server)
    post.work()
    (queue_id,) = post.hand_in()
    post.wait_for(lambda: post.world.message(queue_id).state == State.UNCERTAIN)
    message = post.world.message(queue_id)
    assert message.due_at is not None
    assert post.world.attempts(queue_id)[0].cause == "lost-answer"


def test_a_stop_finishes_what_is_under_way(post: Post) -> None:
    server = post.server()
    post.connect(server)
    worker = post.work()
    post.hand_in(200)
    post.wait_for(lambda: server.mails)
    worker.stop()
    post.workers[0][1].join(PATIENCE)
    assert State.SENDING not in post.states()
    assert post.states().count(State.SENT) == len(server.mails)


def test_only_one_worker_delivers_and_another_takes_over(post: Post) -> None:
    server = post.server()
    post.connect(server)
    first = post.work()
    post.hand_in(5)
    post.wait_for(lambda: len(server.mails) == 5)
    other = ownership(post.installation.db, post.installation.settings.instance)
    assert not other.acquire()
    post.work()
    first.stop()
    post.hand_in(5)
    post.wait_for(lambda: len(server.mails) == 10)


def test_mail_that_waited_for_a_first_connection_leaves(post: Post) -> None:
    post.work()
    post.hand_in(3)
    server = post.server()
    assert post.connect(server) == 3
    post.waker.wake()
    post.wait_for(lambda: post.states() == [State.SENT] * 3)


def test_sessions_that_are_over_are_swept_away(post: Post) -> None:
    now = post.installation.db.now()
    with post.installation.db.write() as session:
        user = a_user(session)
        for digest, expires_at in (("over", now - timedelta(1)), ("open", now + timedelta(1))):
            session.add(
                UserSession(
                    digest=digest,
                    user_id=user.id,
                    created_at=now,
                    seen_at=now,
                    expires_at=expires_at,
                )
            )
    post.work()

    def left() -> list[str]:
        with post.installation.db.read() as session:
            return list(session.scalars(sa.select(UserSession.digest)))

    post.wait_for(lambda: left() == ["open"])


def test_a_lost_connection_to_the_database_costs_nothing(db_url: str, tmp_path: Path) -> None:
    """PostgreSQL: every connection is cut, the advisory lock's, too, while mail is under way."""
    if db_url.startswith("sqlite"):
        pytest.skip("there is no connection to lose")
    post = Post(an_installation(db_url, tmp_path))
    counter = Counter(0.4)  # so that the worker looks after its lock while mail is under way
    post.connect(post.server(mails=counter))
    post.work()
    post.hand_in(60)
    post.wait_for(lambda: counter.now > 2)
    engine = sa.create_engine(sa.make_url(db_url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        )
    engine.dispose()
    post.wait_for(lambda: set(post.states()) == {State.SENT})
    assert post.world.gaps() == 0
    marked = sum(post.world.message(mail).maybe_twice for mail in post.queue_ids())
    assert (len(counter), marked) == (60, 0)
    post.close()


def test_a_site_that_must_not_send_is_silenced_even_for_mail_in_flight(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.delivery.worker.CHORES_SECONDS", 0.5)
    server = post.server(always={"MAIL": "451 4.3.0 not now"})
    post.connect(server)
    post.work()
    post.hand_in(3)
    post.wait_for(lambda: post.states() == [State.DEFERRED] * 3)
    with post.installation.db.write() as session:
        session.execute(sa.update(Site).values(mode=Mode.DO_NOT_SEND))
    post.wait_for(lambda: post.states() == [State.BLOCKED] * 3)
    assert post.world.gaps() == 0


def test_a_success_does_not_lift_a_wait_that_was_asked_for_since(post: Post) -> None:
    counter = Counter()
    server = post.server(mails=counter)
    post.connect(server, limits=Limits(concurrency=2))
    post.work()
    server.then("RCPT", "250 2.1.5 ok", "450 4.7.0 rate limited, slow down")
    post.hand_in(2)
    post.wait_for(lambda: post.lane().is_blocked)
    post.wait_for(lambda: State.SENT in post.states())
    assert post.lane().is_blocked
