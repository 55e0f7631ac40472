"""Who wins the From: the table of the settings page, row by row."""

import pytest

from webapp.mime.sender import FromBlock, FromReason, Placeholders, resolve_from

PLACEHOLDERS = Placeholders(emails=("wordpress@shop.example", "www-data@*"), names=("WordPress",))


def a_block(
    email: str = "set@x.example",
    force_email: bool = False,
    name: str = "Set",
    force_name: bool = False,
) -> FromBlock:
    return FromBlock(
        email=email, force_email=force_email, name=name, force_name=force_name, return_path=False
    )


@pytest.mark.parametrize(
    ("asked", "setting", "force", "email", "reason"),
    [
        # Forced and set: the setting, whatever was asked.
        ("me@shop.example", "set@x.example", True, "set@x.example", FromReason.FORCED),
        ("wordpress@shop.example", "set@x.example", True, "set@x.example", FromReason.FORCED),
        ("", "set@x.example", True, "set@x.example", FromReason.FORCED),
        # Forced but empty is not forcing.
        ("me@shop.example", "", True, "me@shop.example", FromReason.KEPT),
        ("wordpress@shop.example", "", True, "wordpress@shop.example", FromReason.NOTHING_SET),
        # Not forced: what was asked is kept, unless it is a placeholder or missing.
        ("me@shop.example", "set@x.example", False, "me@shop.example", FromReason.KEPT),
        ("WordPress@Shop.example", "set@x.example", False, "set@x.example", FromReason.PLACEHOLDER),
        ("www-data@any.host", "set@x.example", False, "set@x.example", FromReason.PLACEHOLDER),
        ("www-data", "set@x.example", False, "set@x.example", FromReason.PLACEHOLDER),
        ("xwww-data@any.host", "set@x.example", False, "xwww-data@any.host", FromReason.KEPT),
        ("wordpress@other.example", "set@x.example", False, "wordpress@other.example",
         FromReason.KEPT),
        ("", "set@x.example", False, "set@x.example", FromReason.PLACEHOLDER),
        # A placeholder with nothing to put in its place stays.
        ("wordpress@shop.example", "", False, "wordpress@shop.example", FromReason.NOTHING_SET),
        ("", "", False, "", FromReason.NOTHING_SET),
    ],
)  # fmt: skip
def test_from_email(asked: str, setting: str, force: bool, email: str, reason: FromReason) -> None:
    decision = resolve_from(asked, "Me", a_block(email=setting, force_email=force), PLACEHOLDERS)
    assert (decision.email, decision.reason) == (email, reason)
    assert decision.forced is (reason is FromReason.FORCED)
    assert decision.replaced is (email != asked)


@pytest.mark.parametrize(
    ("asked", "setting", "force", "name"),
    [
        ("Me", "Set", True, "Set"),
        ("Me", "", True, ""),
        ("Me", "Set", False, "Me"),
        ("WordPress", "Set", False, "Set"),
        ("wordpress", "Set", False, "Set"),
        ("WordPress", "", False, ""),
        ("", "Set", False, "Set"),
        ("", "", False, ""),
    ],
)
def test_from_name(asked: str, setting: str, force: bool, name: str) -> None:
    block = a_block(name=setting, force_name=force)
    decision = resolve_from("me@shop.example", asked, block, PLACEHOLDERS)
    assert decision.name == name
    assert decision.replaced is (name != asked)
    assert not decision.forced


def test_forcing_the_address_that_was_asked_replaces_nothing() -> None:
    decision = resolve_from("set@x.example", "Me", a_block(force_email=True), PLACEHOLDERS)
    assert decision.forced
    assert not decision.replaced
