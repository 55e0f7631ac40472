"""Each cause opens one incident, and closes it."""

import threading

import pytest

from tests.incidents.conftest import KEY, Desk
from tests.incidents.hooks import Hook, is_genuine
from webapp.incidents.kinds import Kind


def test_a_refused_link_is_one_incident_told_once_each_way(desk: Desk, hook: Hook) -> None:
    site = desk.site(name="Galerie Nord", slug="galerie-nord")
    grant = desk.linked(site)
    desk.target(hook.url)
    desk.round()
    assert desk.incidents() == []
    desk.refuse(grant)
    for _ in range(3):
        desk.round()
    assert desk.open() == [Kind.LINK]
    (call,) = hook.calls
    assert is_genuine(call, KEY)
    assert not is_genuine(call, "another")
    facts = call.facts
    assert (facts["kind"], facts["occasion"], facts["code"]) == (
        "link-refused",
        "opened",
        "AADSTS50173",
    )
    assert facts["sites"] == [
        {"slug": "galerie-nord", "name": "Galerie Nord", "url": "https://galerie-nord.example"}
    ]
    assert facts["link"].endswith(f"/settings/system/{facts['id']}")
    desk.link_again(grant)
    for _ in range(3):
        desk.round()
    assert desk.open() == []
    assert [call.facts["occasion"] for call in hook.calls] == ["opened", "closed"]
    assert hook.calls[1].facts["until"]


def test_two_watchers_at_once_make_one_incident(desk: Desk, hook: Hook) -> None:
    desk.target(hook.url)
    grants = [desk.linked(desk.site()) for _ in range(5)]
    for grant in grants:
        desk.refuse(grant)
    threads = [threading.Thread(target=desk.watch.round) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert desk.open() == [Kind.LINK] * 5
    tellers = [threading.Thread(target=desk.a_teller().round) for _ in range(3)]
    for thread in tellers:
        thread.start()
    for thread in tellers:
        thread.join()
    assert len(hook.calls) == 5


@pytest.mark.parametrize("name", ["round", "check_ledger"])
def test_nothing_is_wrong_with_an_empty_installation(desk: Desk, name: str) -> None:
    getattr(desk.watch, name)()
    assert desk.incidents() == []
