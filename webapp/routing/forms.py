"""The builder of rules: a form that grows by its own buttons, without JavaScript too.

Every card is one rule. An open card has a field for each thing; a closed one carries its rule in a
single field, so that a page with many rules stays light. A button named `do` posts the form, and it
comes back with a card, group or condition more, less or elsewhere; nothing is stored by that.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode

import flask_babel

from webapp.fields import N_
from webapp.routing.conditions import MAX_CONDITIONS, MAX_GROUPS, Operator, Property
from webapp.routing.models import Action, RuleKind
from webapp.routing.presets import preset
from webapp.routing.rules import EMPTY, MAX_RULES, Draft, Typed

MOST_OPEN = 6
"""With more rules than these a page begins with all of them closed."""
MAX_VALUE = 4_000
"""Of what is kept of a field, so that nothing typed is lost and no form grows without end."""

PROPERTIES: Mapping[Property, str] = {
    Property.SUBJECT: N_("Subject"),
    Property.MESSAGE: N_("Message"),
    Property.FROM_EMAIL: N_("From Email"),
    Property.FROM_NAME: N_("From Name"),
    Property.TO: N_("To"),
    Property.CC: N_("CC"),
    Property.BCC: N_("BCC"),
    Property.REPLY_TO: N_("Reply-To"),
    Property.HEADER_NAME: N_("Header Name"),
    Property.HEADER_VALUE: N_("Header Value"),
    Property.INITIATOR: N_("Initiator"),
}
OPERATORS: Mapping[Operator, str] = {
    Operator.CONTAINS: N_("contains"),
    Operator.DOES_NOT_CONTAIN: N_("does not contain (all)"),
    Operator.IS: N_("is"),
    Operator.IS_NOT: N_("is not (all)"),
    Operator.STARTS_WITH: N_("starts with"),
    Operator.ENDS_WITH: N_("ends with"),
}
ACTIONS: Mapping[Action, str] = {
    Action.ALLOW: N_("Allow"),
    Action.BLOCK: N_("Block"),
    Action.HOLD: N_("Hold for release"),
}

_NUMBER = re.compile(r"r(\d{1,4})(?:-|$)")
_CONDITION = re.compile(r"r(\d{1,4})-g(\d{1,4})-c(\d{1,4})-property")


def _(sentence: str, **values: object) -> str:
    return str(flask_babel.gettext(sentence, **values))


@dataclass(frozen=True, kw_only=True)
class Card:
    """A rule on the page."""

    draft: Draft
    is_open: bool = True


@dataclass(frozen=True, kw_only=True)
class Builder:
    """The cards, and what the button that was pressed did."""

    cards: tuple[Card, ...]
    focus: str = ""
    """What takes the focus: the id of a field, or the value of a button."""
    said: str = ""
    """What happened, for those who do not see it."""

    @property
    def drafts(self) -> list[Draft]:
        """The rules, in the order of the page."""
        return [card.draft for card in self.cards]


def cards_of(drafts: Sequence[Draft]) -> tuple[Card, ...]:
    """Stored rules as a page begins with them."""
    few = len(drafts) <= MOST_OPEN
    return tuple(Card(draft=draft, is_open=few) for draft in drafts)


# ---- what was sent ----


def read_cards(form: Mapping[str, str]) -> tuple[Card, ...]:
    """The cards of a form that was sent, in their order; whatever it holds is taken as it is."""
    numbers = {int(found[1]) for name in form if (found := _NUMBER.match(name))}
    return tuple(_read_card(form, number) for number in sorted(numbers)[: MAX_RULES + 1])


def _read_card(form: Mapping[str, str], number: int) -> Card:
    prefix = f"r{number}"
    if prefix in form:
        return Card(draft=unpack(form[prefix]), is_open=False)
    draft = Draft(
        uid=form.get(f"{prefix}-uid", ""),
        name=form.get(f"{prefix}-name", "")[:MAX_VALUE],
        connection=form.get(f"{prefix}-connection", ""),
        action=form.get(f"{prefix}-action", ""),
        groups=_read_groups(form, number) or ((EMPTY,),),
    )
    return Card(draft=draft)


def _read_groups(form: Mapping[str, str], number: int) -> Typed:
    places = (found for name in form if (found := _CONDITION.fullmatch(name)))
    mine = sorted((int(at[2]), int(at[3])) for at in places if int(at[1]) == number)
    groups: dict[int, list[Mapping[str, str]]] = {}
    for group, condition in mine:
        prefix = f"r{number}-g{group}-c{condition}"
        read = {name: form.get(f"{prefix}-{name}", "")[:MAX_VALUE] for name in EMPTY}
        groups.setdefault(group, []).append(read)
    return tuple(tuple(group) for group in groups.values())


def pack(draft: Draft) -> str:
    """A rule as the one field of a closed card."""
    pairs = [(name, getattr(draft, name)) for name in ("uid", "name", "connection", "action")]
    conditions = [
        ("c", f"{number} {each['property']} {each['operator']} {each['value']}")
        for number, group in enumerate(draft.groups)
        for each in group
    ]
    return urlencode([*((name, value) for name, value in pairs if value), *conditions])


def unpack(text: str) -> Draft:
    """The same back; what cannot be read is a rule without conditions."""
    given: dict[str, str] = {}
    groups: dict[str, list[Mapping[str, str]]] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        if name != "c":
            given[name] = value
            continue
        number, prop, operator, sought = (*value.split(" ", 3), "", "", "")[:4]
        condition = {"property": prop, "operator": operator, "value": sought}
        groups.setdefault(number, []).append(condition)
    return Draft(
        uid=given.get("uid", ""),
        name=given.get("name", ""),
        connection=given.get("connection", ""),
        action=given.get("action", ""),
        groups=tuple(tuple(group) for group in groups.values()) or ((EMPTY,),),
    )


# ---- what a button does ----


def press(cards: Sequence[Card], do: str, kind: RuleKind, chosen_preset: str = "") -> Builder:
    """The cards after a button was pressed: `add`, `preset`, or a verb and where, such as
    `add-condition:2:0` and `up:1`. What fits nothing changes nothing."""
    verb, *where = do.split(":")
    at = [int(part) for part in where if part.isdecimal() and len(part) < 5]
    here = tuple(cards)
    if verb == "add" and len(here) < MAX_RULES:
        return _added(here, Draft(), kind)
    if verb == "preset" and len(here) < MAX_RULES:
        return _with_preset(here, kind, chosen_preset)
    step = _STEPS.get(verb)
    if step is None or not at or at[0] >= len(here):
        return Builder(cards=here)
    return step(here, kind, at[0], *[*at[1:], 0, 0][:2])


def _added(cards: tuple[Card, ...], draft: Draft, kind: RuleKind) -> Builder:
    number = len(cards)
    return Builder(
        cards=(*cards, Card(draft=draft)),
        focus=f"r{number}-{target_field(kind)}",
        said=_("Rule %(n)s was added.", n=number + 1),
    )


def _with_preset(cards: tuple[Card, ...], kind: RuleKind, slug: str) -> Builder:
    found = preset(slug)
    if found is None:
        return Builder(
            cards=cards, focus="preset-choice", said=_("Choose a notice of WordPress first.")
        )
    draft = Draft(name=_(found.label), action=Action.BLOCK, groups=found.groups)
    return _added(cards, draft, kind)


def target_field(kind: RuleKind) -> str:
    """The field that says what a rule leads to."""
    return "connection" if kind is RuleKind.ROUTE else "action"


def _moved(cards: tuple[Card, ...], number: int, to: int, verb: str) -> Builder:
    if not 0 <= to < len(cards):
        return Builder(cards=cards, focus=f"{verb}:{number}")
    order = list(cards)
    order.insert(to, order.pop(number))
    # At the end of its way the button of the other direction takes the focus.
    ends = to in {0, len(cards) - 1}
    stuck = (to == 0 and verb == "up") or (to == len(cards) - 1 and verb == "down")
    other = "down" if verb == "up" else "up"
    return Builder(
        cards=tuple(order),
        focus=f"{other if ends and stuck else verb}:{to}",
        said=_("The rule is number %(n)s of %(all)s now.", n=to + 1, all=len(cards)),
    )


def _up(cards: tuple[Card, ...], kind: RuleKind, number: int, _g: int, _c: int) -> Builder:
    return _moved(cards, number, number - 1, "up")


def _down(cards: tuple[Card, ...], kind: RuleKind, number: int, _g: int, _c: int) -> Builder:
    return _moved(cards, number, number + 1, "down")


def _remove(cards: tuple[Card, ...], kind: RuleKind, number: int, _g: int, _c: int) -> Builder:
    left = (*cards[:number], *cards[number + 1 :])
    after = min(number, len(left) - 1)
    focus = "add"
    if left:
        focus = f"r{after}-{target_field(kind)}" if left[after].is_open else f"open:{after}"
    return Builder(
        cards=left,
        focus=focus,
        said=_("Rule %(n)s was removed. It is gone once you save.", n=number + 1),
    )


def _open(cards: tuple[Card, ...], kind: RuleKind, number: int, _g: int, _c: int) -> Builder:
    return Builder(
        cards=_replaced(cards, number, replace(cards[number], is_open=True)),
        focus=f"r{number}-{target_field(kind)}",
        said=_("Rule %(n)s is open.", n=number + 1),
    )


def _close(cards: tuple[Card, ...], kind: RuleKind, number: int, _g: int, _c: int) -> Builder:
    return Builder(
        cards=_replaced(cards, number, replace(cards[number], is_open=False)),
        focus=f"open:{number}",
        said=_("Rule %(n)s is closed.", n=number + 1),
    )


def _add_condition(
    cards: tuple[Card, ...], kind: RuleKind, number: int, group: int, _c: int
) -> Builder:
    groups = cards[number].draft.groups
    if group >= len(groups) or len(groups[group]) >= MAX_CONDITIONS:
        return Builder(cards=cards)
    grown = (*groups[group], EMPTY)
    return Builder(
        cards=_with_groups(cards, number, (*groups[:group], grown, *groups[group + 1 :])),
        focus=f"r{number}-g{group}-c{len(grown) - 1}-property",
        said=_("A condition was added."),
    )


def _add_group(cards: tuple[Card, ...], kind: RuleKind, number: int, _g: int, _c: int) -> Builder:
    groups = cards[number].draft.groups
    if len(groups) >= MAX_GROUPS:
        return Builder(cards=cards)
    return Builder(
        cards=_with_groups(cards, number, (*groups, (EMPTY,))),
        focus=f"r{number}-g{len(groups)}-c0-property",
        said=_("A group was added: the rule also counts where this one is met."),
    )


def _remove_condition(
    cards: tuple[Card, ...], kind: RuleKind, number: int, group: int, condition: int
) -> Builder:
    """Its group goes with the last one; a rule always has a condition."""
    groups = cards[number].draft.groups
    if group >= len(groups) or condition >= len(groups[group]):
        return Builder(cards=cards)
    less = (*groups[group][:condition], *groups[group][condition + 1 :])
    left = (*groups[:group], *((less,) if less else ()), *groups[group + 1 :]) or ((EMPTY,),)
    at = min(group, len(left) - 1)
    last = len(left[at]) - 1
    return Builder(
        cards=_with_groups(cards, number, left),
        focus=f"r{number}-g{at}-c{min(condition, last)}-property",
        said=_("The condition was removed."),
    )


def _with_groups(cards: tuple[Card, ...], number: int, groups: Typed) -> tuple[Card, ...]:
    draft = replace(cards[number].draft, groups=groups)
    return _replaced(cards, number, Card(draft=draft))


def _replaced(cards: tuple[Card, ...], number: int, card: Card) -> tuple[Card, ...]:
    return (*cards[:number], card, *cards[number + 1 :])


_STEPS: Mapping[str, Callable[[tuple[Card, ...], RuleKind, int, int, int], Builder]] = {
    "up": _up,
    "down": _down,
    "remove": _remove,
    "open": _open,
    "close": _close,
    "add-condition": _add_condition,
    "add-group": _add_group,
    "remove-condition": _remove_condition,
}


# ---- what was refused ----


def with_errors(cards: Sequence[Card], names: Sequence[str]) -> tuple[Card, ...]:
    """The same, with those open that have a field to look at again."""
    faulty = {int(found[1]) for name in names if (found := _NUMBER.match(name))}
    return tuple(
        replace(card, is_open=card.is_open or number in faulty) for number, card in enumerate(cards)
    )
