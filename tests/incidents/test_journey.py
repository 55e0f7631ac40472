"""Revoked, held, told; linked again, delivered, told: the worker and the stand-in for Microsoft."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.factories import a_connection, an_installation
from tests.incidents.conftest import KEY, a_target
from tests.incidents.hooks import Hook, is_genuine
from tests.mailers.fakes import FakeSmtp
from tests.microsoft.test_delivery import ORDERS, GraphPost
from tests.rig.sandbox import SandboxThread
from webapp.delivery.models import State
from webapp.incidents.models import Channel
from webapp.incidents.tell import Teller
from webapp.incidents.watch import Watch


@pytest.fixture
def post(db_url: str, tmp_path: Path) -> Iterator[GraphPost]:
    with SandboxThread() as sandbox:
        named = {name.removeprefix("POSTROOM_"): v for name, v in sandbox.environment.items()}
        made = GraphPost(an_installation(db_url, tmp_path, **named), sandbox)
        yield made
        made.close()


def test_a_revoked_link_holds_mail_is_told_and_is_over_once_linked_again(post: GraphPost) -> None:
    installation = post.installation
    watch = Watch(installation)
    teller = Teller(installation, lambda: installation.keyring, post.surroundings())
    with Hook() as hook, FakeSmtp() as server:
        settings = {"host": "127.0.0.1", "port": server.port, "encryption": "none"}
        settings |= {"auto_tls": False, "authentication": False}
        post.link()
        with installation.db.write() as session:
            a_target(session, installation, hook.url)
            a_target(session, installation, "mara@agentur.example", channel=Channel.EMAIL)
            a_connection(
                session,
                None,
                settings=settings,
                is_system=True,
                from_email="alerts@agentur.example",
            )
        post.forget_tokens()
        post.sandbox.revoke(ORDERS)
        post.work()
        post.hand_in(1)
        post.wait_for(lambda: post.lane().is_blocked and State.SENDING not in post.states())
        for _ in range(2):
            watch.round()
            teller.round()
        assert post.states() in ([State.QUEUED], [State.DEFERRED])
        assert post.sandbox.mails() == []
        (call,) = hook.calls
        assert is_genuine(call, KEY)
        assert (call.facts["kind"], call.facts["waiting"]) == ("link-refused", 1)
        assert len(server.mails) == 1

        post.link_again()
        post.wait_for(lambda: post.states() == [State.SENT])
        for _ in range(2):
            watch.round()
            teller.round()
        assert len(post.sandbox.mails()) == 1
        assert [call.facts["occasion"] for call in hook.calls] == ["opened", "closed"]
        assert len(server.mails) == 2
        assert post.world.gaps() == 0
