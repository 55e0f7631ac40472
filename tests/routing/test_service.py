"""What becomes of a mail: the law by which modes, controls and routes combine. Pure."""

from dataclasses import replace
from typing import Any, NoReturn

import pytest

from tests.routing.test_conditions import one
from webapp.routing.conditions import Groups, MailFacts, facts_for_rules
from webapp.routing.service import (
    Action,
    Chosen,
    Control,
    Plan,
    Route,
    Rules,
    SiteRoute,
    plan,
    rules_from,
)
from webapp.sites.models import Mode

PRIMARY, SECOND, THIRD = 1, 2, 3
ALL = one("subject", "contains", "order")
NONE = one("subject", "contains", "refund")
ASKED = Chosen(connection_id=THIRD, lane_id=30)
RESEND = replace(ASKED, is_resend=True)
TEST = replace(ASKED, is_test=True)


def a_route(groups: Groups = ALL, connection: int | None = SECOND, name: str = "Orders") -> Route:
    return Route(uid="r1", name=name, groups=groups, connection_id=connection)


def a_control(action: Action, groups: Groups = ALL) -> Control:
    return Control(uid="c1", name="Stop", groups=groups, action=action)


def a_site(*rules: Route | Control, mode: Mode = Mode.LIVE, **values: Any) -> SiteRoute:
    given: dict[str, Any] = {
        "site_id": 1,
        "mode": mode,
        "retry_hours": 72,
        "connection_id": PRIMARY,
        "lane_id": 10,
        "version": 7,
        "lanes": {SECOND: 20},
        "rules": Rules(
            controls=tuple(rule for rule in rules if isinstance(rule, Control)),
            routes=tuple(rule for rule in rules if isinstance(rule, Route)),
        ),
    }
    return SiteRoute(**(given | values))


def facts() -> MailFacts:
    return facts_for_rules(b"Subject: Order 7\r\n\r\nx", ["a@x.example"], "")


def planned(site: SiteRoute, chosen: Chosen | None = None) -> Plan:
    return plan(site, facts, chosen)


def never() -> NoReturn:
    raise AssertionError("the mail was looked at for nothing")


def test_without_rules_the_mail_is_not_looked_at_and_goes_by_the_primary() -> None:
    found = plan(a_site(), never)
    assert (found.connection_id, found.lane_id, found.version) == (PRIMARY, 10, 7)
    assert found.why == {"code": "primary"}


def test_the_first_route_that_is_met_decides() -> None:
    found = planned(a_site(a_route(NONE), a_route(name="First"), a_route(name="Second")))
    assert (found.connection_id, found.lane_id, found.version) == (SECOND, 20, 7)
    assert found.why == {"code": "rule", "rule": "r1", "name": "First", "group": 0}


def test_a_route_that_is_not_met_leaves_the_primary() -> None:
    assert planned(a_site(a_route(NONE))).why == {"code": "primary"}


@pytest.mark.parametrize("connection", [None, THIRD])
def test_a_route_whose_connection_cannot_send_is_skipped(connection: int | None) -> None:
    assert planned(a_site(a_route(connection=connection))).connection_id == PRIMARY


def test_a_mail_waits_where_no_connection_can_send() -> None:
    found = planned(a_site(connection_id=None, lane_id=None))
    assert (found.connection_id, found.why) == (None, {"code": "no-connection"})
    assert not found.held


def test_do_not_send_blocks_before_anything_is_looked_at() -> None:
    site = a_site(a_control(Action.ALLOW), a_route(), mode=Mode.DO_NOT_SEND)
    found = plan(site, never)
    assert found.blocked
    assert (found.why, found.connection_id) == ({"code": "do-not-send"}, None)


@pytest.mark.parametrize("chosen", [ASKED, RESEND])
def test_do_not_send_blocks_what_asked_for_a_connection(chosen: Chosen) -> None:
    assert planned(a_site(mode=Mode.DO_NOT_SEND), chosen).blocked


@pytest.mark.parametrize("mode", list(Mode))
def test_a_test_passes_every_mode_control_and_rule(mode: Mode) -> None:
    site = a_site(a_control(Action.BLOCK), a_route(), mode=mode, redirect_to="me@x.example")
    found = plan(site, never, TEST)
    assert (found.blocked, found.held, found.redirect_to) == (False, False, "")
    assert (found.connection_id, found.why, found.version) == (THIRD, {"code": "test"}, None)


def test_a_control_blocks() -> None:
    found = planned(a_site(a_control(Action.BLOCK), a_route()))
    assert found.blocked
    assert found.why == {
        "code": "control",
        "rule": "c1",
        "name": "Stop",
        "action": "block",
        "group": 0,
    }


def test_a_control_holds_mail_whose_way_is_planned_all_the_same() -> None:
    found = planned(a_site(a_control(Action.HOLD), a_route()))
    assert found.held
    assert (found.why["code"], found.connection_id) == ("control", SECOND)


def test_the_first_control_that_is_met_decides() -> None:
    blocks, allows = a_control(Action.BLOCK), a_control(Action.ALLOW)
    assert not planned(a_site(allows, blocks)).blocked
    assert planned(a_site(blocks, allows)).blocked
    assert planned(a_site(a_control(Action.ALLOW, NONE), blocks)).blocked
    assert not planned(a_site(a_control(Action.BLOCK, NONE))).blocked


def test_mode_hold_holds_what_controls_let_through() -> None:
    found = planned(a_site(a_control(Action.ALLOW), a_route(), mode=Mode.HOLD))
    assert found.held
    assert (found.why, found.connection_id) == ({"code": "mode-hold"}, SECOND)
    assert planned(a_site(a_control(Action.BLOCK), mode=Mode.HOLD)).blocked


def test_what_asked_for_a_connection_passes_routes_but_neither_controls_nor_hold() -> None:
    found = planned(a_site(a_route()), ASKED)
    assert (found.connection_id, found.lane_id, found.version) == (THIRD, 30, None)
    assert found.why == {"code": "asked"}
    assert planned(a_site(a_control(Action.BLOCK)), ASKED).blocked
    held = planned(a_site(mode=Mode.HOLD), ASKED)
    assert (held.held, held.connection_id, held.version) == (True, THIRD, None)


def test_a_resend_by_a_chosen_connection_passes_controls_too() -> None:
    assert planned(a_site(a_control(Action.BLOCK), a_route()), RESEND).why == {"code": "asked"}
    assert planned(a_site(mode=Mode.HOLD), RESEND).held


def test_redirect_to_names_who_gets_the_mail() -> None:
    site = a_site(a_route(), mode=Mode.REDIRECT_TO, redirect_to="me@x.example")
    found = planned(site)
    assert (found.redirect_to, found.connection_id) == ("me@x.example", SECOND)
    assert planned(replace(site, mode=Mode.LIVE)).redirect_to == ""


def test_mail_that_is_to_be_redirected_to_nobody_is_held() -> None:
    assert planned(a_site(mode=Mode.REDIRECT_TO)).held


GOOD = [[{"property": "subject", "operator": "contains", "value": "order"}]]


def test_rules_are_read_as_stored_and_those_without_conditions_left_out() -> None:
    rows = [
        ("control", "c1", "Stop", None, "block", GOOD),
        ("control", "c2", "Odd", None, "shred", GOOD),
        ("route", "r1", "Orders", SECOND, "", GOOD),
        ("route", "r2", "Empty", SECOND, "", []),
    ]
    rules = rules_from(rows, routing_enabled=True)
    assert [control.uid for control in rules.controls] == ["c1"]
    assert [route.uid for route in rules.routes] == ["r1"]
    assert rules_from(rows, routing_enabled=False).routes == ()
    assert not rules_from(rows[1:2], routing_enabled=True)
