"""The pages of rules, without JavaScript: every button posts the form and gives it back."""

from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from tests.factories import (
    a_connection,
    a_credential,
    a_mail,
    a_membership,
    a_message,
    a_site,
    a_user,
)
from tests.pages import Browser, Node, Page
from tests.routing.test_rules import one, save
from webapp import i18n
from webapp.accounts import rights
from webapp.accounts.models import Role
from webapp.accounts.rights import Right
from webapp.connections.models import Connection
from webapp.delivery.models import Content
from webapp.installation import Installation
from webapp.routing import rules
from webapp.routing.forms import MOST_OPEN, cards_of, pack, press, read_cards, unpack
from webapp.routing.models import RuleKind
from webapp.routing.presets import PRESETS
from webapp.routing.rules import Draft
from webapp.sites.models import Mode, Site

BAR_BYTES = 100 * 1024
COMPLETE = {"authentication": False}


@dataclass(frozen=True, kw_only=True)
class Here:
    """A site with a second connection, and somebody who may edit its settings."""

    client: Browser
    installation: Installation
    site: Site
    primary: str
    other: str

    def path(self, page: str = "routing") -> str:
        return f"/sites/{self.site.slug}/settings/{page}"

    def stored(self, kind: RuleKind = RuleKind.ROUTE) -> list[Draft]:
        with self.installation.db.read() as session:
            return rules.rules_of(session, self.site, kind)

    def save(self, *drafts: Draft, kind: RuleKind = RuleKind.ROUTE, on: bool = True) -> None:
        with self.installation.db.write() as session:
            save(session, session.get_one(Site, self.site.id), *drafts, kind=kind, on=on)


@pytest.fixture
def here(client: Browser, installation: Installation) -> Here:
    with installation.db.write() as session:
        site, user = a_site(session, name="Lindenhof"), a_user(session)
        a_membership(session, user, site, Role.OPERATOR)
        primary = a_connection(session, site, nickname="Office", settings=COMPLETE).uid
        other = a_connection(session, site, primary=False, nickname="Brevo", settings=COMPLETE).uid
    client.sign_in(user)
    return Here(client=client, installation=installation, site=site, primary=primary, other=other)


def form_of(page: Page) -> dict[str, str]:
    """What a browser without JavaScript would send of the builder's form."""
    form = next(node for node in page.all("form") if "data-builder" in node.attributes)
    found = {}
    for node in form.walk():
        name, kind = node.get("name"), node.get("type")
        if not name or node.tag == "button":
            continue
        if node.tag in {"select", "textarea"} or kind != "checkbox" or "checked" in node.attributes:
            found[name] = page.value(name) if node.tag != "input" else node.get("value")
    return found


def autofocused(page: Page) -> Node:
    (found,) = (node for node in page.walk() if "autofocus" in node.attributes)
    return found


def press_on(here: Here, page: Page, do: str, name: str = "routing", **typed: str) -> Page:
    """The page after one of its buttons."""
    return here.client.post(here.path(name), {**form_of(page), **typed, "do": do})


def test_a_rule_is_built_without_javascript_and_nothing_is_stored_before_it_is_saved(
    here: Here,
) -> None:
    page = here.client.get(here.path())
    assert "No rule yet." in page.one("main").text
    page = press_on(here, page, "add", enabled="y")
    assert autofocused(page)["id"] == "r0-connection"
    typed = {"r0-name": "Orders", "r0-connection": here.other, "r0-g0-c0-value": "Order “7” & more"}
    page = press_on(here, page, "add-condition:0:0", **typed)
    assert autofocused(page)["id"] == "r0-g0-c1-property"
    second = {
        "r0-g0-c1-property": "from-email",
        "r0-g0-c1-operator": "ends-with",
        "r0-g0-c1-value": "@x.example",
    }
    page = press_on(here, page, "add-group:0", **second)
    assert autofocused(page)["id"] == "r0-g1-c0-property"
    page = press_on(here, page, "close:0", **{"r0-g1-c0-value": "Invoice"})
    assert autofocused(page)["value"] == "open:0"
    assert "Send with Brevo if Subject contains “Order “7” & more”" in page.one("main").text
    page = press_on(here, page, "open:0")
    assert page.value("r0-g0-c1-operator") == "ends-with"
    assert here.stored() == []
    assert page.one("form", data_builder="said")["data-leave"] == "now"

    page = here.client.post(here.path(), form_of(page))
    assert page.notices == ["Settings saved."]
    (draft,) = here.stored()
    assert (draft.name, draft.connection) == ("Orders", here.other)
    assert [[each["value"] for each in group] for group in draft.groups] == [
        ["Order “7” & more", "@x.example"],
        ["Invoice"],
    ]
    assert page.one("form", data_builder="said")["data-leave"] == ""
    assert "checked" in page.one(id="enabled").attributes


def test_rules_move_and_go_by_buttons_and_keep_the_focus(here: Here) -> None:
    here.save(*(Draft(name=name, connection=here.other, groups=one(name)) for name in "abc"))
    page = press_on(here, here.client.get(here.path()), "up:2")
    assert [page.value(f"r{n}-name") for n in range(3)] == ["a", "c", "b"]
    assert autofocused(page)["value"] == "up:1"
    page = press_on(here, page, "up:1")
    assert [page.value(f"r{n}-name") for n in range(3)] == ["c", "a", "b"]
    assert autofocused(page)["value"] == "down:0"
    page = press_on(here, page, "remove:1")
    assert [page.value(f"r{n}-name") for n in range(2)] == ["c", "b"]
    page = press_on(here, page, "down:0")
    assert autofocused(page)["value"] == "up:1"
    assert [draft.name for draft in here.stored()] == ["a", "b", "c"]
    here.client.post(here.path(), form_of(page))
    assert [draft.name for draft in here.stored()] == ["b", "c"]


def test_what_is_refused_is_told_at_the_field_and_nothing_typed_is_lost(here: Here) -> None:
    page = press_on(here, here.client.get(here.path()), "add")
    page = press_on(here, page, "close:0", **{"try-subject": "Hello"})
    refused = here.client.post(here.path(), form_of(page), status=422)
    assert set(refused.errors) == {"r0-connection", "r0-g0-c0-value"}
    assert refused.one(id="errors").links_to() == ["#r0-connection", "#r0-g0-c0-value"]
    assert refused.one(id="r0-g0-c0-value")["aria-invalid"] == "true"
    assert refused.value("try-subject") == "Hello"
    foreign = {**form_of(refused), "r0-connection": "0123456789", "r0-g0-c0-value": "x"}
    refused = here.client.post(here.path(), foreign, status=422)
    assert set(refused.errors) == {"r0-connection"}
    assert refused.value("r0-g0-c0-value") == "x"
    assert here.stored() == []


def test_a_site_with_one_connection_is_led_to_the_others(
    client: Browser, installation: Installation
) -> None:
    with installation.db.write() as session:
        site, user = a_site(session), a_user(session)
        a_membership(session, user, site, Role.OPERATOR)
        a_connection(session, site)
    client.sign_in(user)
    path = f"/sites/{site.slug}/settings"
    page = client.get(f"{path}/routing")
    assert f"{path}/connections" in page.one(class_="empty").links_to()
    assert not [node for node in page.all("form") if "data-builder" in node.attributes]
    client.get(f"{path}/controls")


def test_a_card_says_that_its_connection_is_gone_or_not_ready(here: Here) -> None:
    with here.installation.db.write() as session:
        half = a_connection(session, here.site, primary=False, nickname="Half").uid
    here.save(
        Draft(connection=here.other, groups=one("a")), Draft(connection=half, groups=one("b"))
    )
    with here.installation.db.write() as session:
        session.execute(
            sa.text("UPDATE connection SET deleted_at = created_at WHERE uid = :uid"),
            {"uid": here.other},
        )
    page = here.client.get(here.path())
    gone, unready = page.notices[-2:]
    assert "Brevo was deleted" in gone
    assert "Half cannot send yet" in unready
    offered = [node["value"] for node in page.one(id="r1-connection").all("option")]
    assert offered == [here.primary, half]
    page = press_on(here, page, "close:0")
    assert "Skipped: connection deleted" in page.one("main").text


def test_a_form_without_rules_in_it_deletes_none(here: Here) -> None:
    here.save(Draft(connection=here.other, groups=one("a")))
    here.client.post(here.path(), {})
    assert len(here.stored()) == 1


@pytest.mark.parametrize("page", ["routing", "controls", "routing/try"])
def test_whoever_may_not_edit_settings_sees_no_rules(
    client: Browser, installation: Installation, page: str
) -> None:
    with installation.db.write() as session:
        site, user = a_site(session), a_user(session)
        a_membership(session, user, site, Role.SUPPORT)
    client.sign_in(user)
    client.get(f"/sites/{site.slug}/settings/{page}", status=403)


def test_a_preset_adds_a_card_that_knows_the_notice(here: Here) -> None:
    page = here.client.get(here.path("controls"))
    page = press_on(here, page, "preset", "controls")
    assert autofocused(page)["id"] == "preset-choice"
    page = press_on(here, page, "preset", "controls", preset="password-asked")
    assert autofocused(page)["id"] == "r0-action"
    assert page.value("r0-name") == "Password reset requested"
    assert page.value("r0-action") == "block"
    here.client.post(here.path("controls"), form_of(page))
    typed = {"try-subject": "[Lindenhof] Password Reset", "try-to": "a@b.example"}
    page = press_on(here, here.client.get(here.path("controls")), "try", "controls", **typed)
    assert page.one(id="verdict-title").text == (
        "It would not be sent: control 1 “Password reset requested” blocks it."
    )


def test_every_preset_can_be_stored_and_has_a_name_of_its_own(here: Here) -> None:
    every = [one for _heading, presets in PRESETS for one in presets]
    drafts = [Draft(name=one.label, action="block", groups=one.groups) for one in every]
    here.save(*drafts, kind=RuleKind.CONTROL)
    assert len({one.slug for one in every}) == len({one.label for one in every}) == len(every)


def test_a_logged_mail_is_tried_against_what_is_in_the_form(here: Here) -> None:
    with here.installation.db.write() as session:
        mail = a_message(
            session, here.site, subject="Order 7", raw=a_mail(subject="Order 7", text="Danke")
        ).queue_id
    here.save(Draft(name="Mine", connection=here.other, groups=one("refund")))
    page = here.client.get(here.path())
    typed = {"try-mail": mail, "r0-g0-c0-property": "message", "r0-g0-c0-value": "danke"}
    page = press_on(here, page, "try", **typed)
    assert page.one(id="verdict-title").text == "It would leave by Brevo: rule 1 “Mine” is met."
    assert autofocused(page)["id"] == "verdict"
    told = page.one(id="verdict").text
    assert "Message contains “danke” : met, by “Danke”" in told
    assert "Force From Email of this connection replaces what was asked" in told
    assert here.stored()[0].groups == one("refund")
    refused = here.client.post(
        here.path(), {**form_of(page), "try-mail": "AAAA", "do": "try"}, status=422
    )
    assert refused.errors == {"try-mail": "No mail of this site has this id."}

    page = here.client.get(f"{here.path('routing/try')}?mail={mail}")
    told = page.one(id="verdict").text
    assert "It would leave by Office, the primary connection: no rule is met." in told
    assert "Subject contains “refund” : not met, the mail has “Order 7”" in told
    here.client.get(f"{here.path('routing/try')}?mail=AAAA", status=422)


def test_the_page_of_a_mail_leads_to_its_dry_run_where_a_rule_decided(here: Here) -> None:
    with here.installation.db.write() as session:
        connection = session.scalars(
            sa.select(Connection).where(Connection.uid == here.primary)
        ).one()
        ruled = a_message(
            session, here.site, connection=connection, why={"code": "rule", "name": "Orders"}
        ).queue_id
        asked = a_message(session, here.site, connection=connection, why={"code": "asked"}).queue_id
    page = here.client.get(f"/sites/{here.site.slug}/log/{ruled}")
    dry_run = f"{here.path('routing/try')}?mail={ruled}"
    assert dry_run in page.links_to()
    here.client.get(dry_run)
    page = here.client.get(f"/sites/{here.site.slug}/log/{asked}")
    assert not [link for link in page.links_to() if "/try" in link]


def test_a_mail_that_is_no_longer_kept_is_tried_by_what_the_log_knows(here: Here) -> None:
    with here.installation.db.write() as session:
        mail = a_message(session, here.site, subject="Order 7")
        session.execute(sa.delete(Content).where(Content.message_id == mail.id))
    here.save(Draft(connection=here.other, groups=one("thanks", "message")))
    page = here.client.get(f"{here.path('routing/try')}?mail={mail.queue_id}")
    told = page.one(id="verdict").text
    assert "no longer kept" in told
    assert "the verdict may be another one" in told
    assert page.value("try-subject") == "Order 7"


def test_a_dry_run_reads_a_logged_mail_only_for_those_who_may(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    with here.installation.db.write() as session:
        mail = a_message(session, here.site, raw=a_mail(text="Secret words")).queue_id
    here.save(Draft(connection=here.other, groups=one("secret", "message")))
    dry_run = f"{here.path('routing/try')}?mail={mail}"
    assert "met, by “Secret words”" in here.client.get(dry_run).one(id="verdict").text
    monkeypatch.setitem(rights.LOWEST, Right.READ_BODY, Role.OWNER)
    told = here.client.get(dry_run).one(id="verdict").text
    assert "You may not read what is in a mail" in told
    assert "Secret words" not in told


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (Mode.DO_NOT_SEND, "It would not be sent: the site’s mode is Do not send."),
        (Mode.HOLD, "It would be held: so is all mail of this site."),
        (Mode.REDIRECT_TO, "It would leave by Office, the primary connection."),
    ],
)
def test_the_mode_of_the_site_counts_in_a_dry_run(here: Here, mode: Mode, words: str) -> None:
    with here.installation.db.write() as session:
        site = session.get_one(Site, here.site.id)
        site.mode, site.redirect_to = mode, "me@staging.example"
    page = here.client.post(
        here.path("routing/try"), {"try-subject": "Hi", "try-to": "a@b.example"}
    )
    assert page.one(id="verdict-title").text == words
    redirected = "in place of its recipients" in page.one(id="verdict").text
    assert redirected == (mode is Mode.REDIRECT_TO)


def test_controls_hold_and_allow_in_a_dry_run(here: Here) -> None:
    here.save(
        Draft(name="Ours", action="allow", groups=one("@x.example", "to", "ends-with")),
        Draft(name="Rest", action="hold", groups=one("a")),
        kind=RuleKind.CONTROL,
    )
    here.save(Draft(connection=here.other, groups=one("a")))
    held = here.client.post(here.path("routing/try"), {"try-subject": "a", "try-to": "b@y.example"})
    assert "control 2 “Rest” wants a person to release it" in held.one(id="verdict-title").text
    assert "Leaves by, once released Brevo" in held.one(id="verdict").text
    sent = here.client.post(here.path("routing/try"), {"try-subject": "a", "try-to": "b@x.example"})
    assert "Rule 1 “Ours” decides: Allow" in sent.one(id="verdict").text
    assert sent.one(id="verdict-title").text == "It would leave by Brevo: rule 1 is met."


def test_the_names_of_logins_are_offered_for_the_initiator(here: Here) -> None:
    with here.installation.db.write() as session:
        a_credential(session, here.site, label="Contact form")
    here.save(Draft(connection=here.other, groups=one("Contact form", "initiator", "is")))
    page = here.client.get(here.path())
    assert [node["value"] for node in page.one(id="initiators").all("option")] == ["Contact form"]
    assert page.one(id="r0-g0-c0-value")["list"] == "initiators"


def test_fifty_rules_and_twenty_connections_stay_a_light_page(here: Here) -> None:
    with here.installation.db.write() as session:
        uids = [
            a_connection(
                session,
                here.site,
                primary=False,
                nickname=f"Connection number {n}",
                settings=COMPLETE,
            ).uid
            for n in range(18)
        ]
    here.save(
        *(
            Draft(
                name=f"Orders of shop {n}",
                connection=uids[n % 18],
                groups=((*one(f"Order {n}")[0], *one("@shop.example", "from-email", "is")[0]),),
            )
            for n in range(50)
        )
    )
    page = here.client.get(here.path())
    static = i18n.resource("static")
    assets = ("app.css", "tokens.css", "app.js", "mark.svg")
    weight = sum((static / name).stat().st_size for name in assets)
    assert len(page.response.data) + weight < BAR_BYTES
    stored = here.stored()
    here.client.post(here.path(), form_of(page))
    assert here.stored() == stored


def test_a_closed_card_carries_its_rule_whole() -> None:
    odd = Draft(uid="u", name="a & b=c", connection="x", groups=one("  two words %7C\t✓", "to"))
    two = Draft(action="hold", groups=(*one("a"), *one("")))
    for draft in (odd, two, Draft()):
        assert unpack(pack(draft)) == draft
    assert unpack("garbage").groups == Draft().groups


def test_a_button_that_fits_nothing_changes_nothing() -> None:
    cards = cards_of([Draft(name="a"), Draft(name="b")])
    for do in ("up:0", "down:1", "up:9", "remove", "add-condition:0:7", "nonsense:0", "up:-1"):
        assert press(cards, do, RuleKind.ROUTE).cards == cards, do
    left = press(cards, "remove-condition:0:0:0", RuleKind.ROUTE).cards
    assert left[0].draft.groups == Draft().groups
    assert not any(card.is_open for card in cards_of([Draft()] * (MOST_OPEN + 1)))
    assert read_cards({"r3-uid": "x", "r12": pack(Draft(name="n")), "rx": "", "r-1": ""})
