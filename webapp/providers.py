"""Whom accounts are linked at, each with the mailer that sends by them. Pure data."""

from collections.abc import Mapping
from dataclasses import dataclass

from webapp.google import cloud as google

MICROSOFT = "microsoft"
GOOGLE = google.PROVIDER


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One of them."""

    slug: str
    name: str
    """As people call it; it is the same in every language."""
    mailer: str
    """The slug of the mailer whose accounts these are."""
    label: str
    """How that mailer is called."""
    anchor: str
    """Of the place on the page of a connection where its account signs in."""
    needed: tuple[str, ...]
    """The permissions that are asked for, without the cloud in front."""
    required: tuple[str, ...]
    """Those without which nothing is linked."""


PROVIDERS: Mapping[str, Provider] = {
    one.slug: one
    for one in (
        Provider(
            slug=MICROSOFT,
            name="Microsoft",
            mailer="outlook",
            label="365 / Outlook",
            anchor="authorization",
            needed=("User.Read", "Mail.Send"),
            required=("User.Read", "Mail.Send"),
        ),
        Provider(
            slug=GOOGLE,
            name="Google",
            mailer="gmail",
            label="Google / Gmail",
            anchor="authorization-gmail",
            needed=tuple(google.NEEDED),
            required=(google.SEND,),
        ),
    )
}
_BY_MAILER: Mapping[str, Provider] = {one.mailer: one for one in PROVIDERS.values()}


def is_linked(mailer: str) -> bool:
    """Whether accounts of this mailer are linked."""
    return mailer in _BY_MAILER


def provider_of(mailer: str) -> Provider:
    """Of a mailer; of one that links nothing it is Microsoft, whose settings it may keep."""
    return _BY_MAILER.get(mailer, PROVIDERS[MICROSOFT])
