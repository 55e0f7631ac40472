"""Controls for the notices that WordPress itself sends, recognised by their subjects.

The subjects are those of WordPress in English: `[Name of the site] Password Reset`. A site in
another language sends others; there the prefilled rule is a start.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from webapp.fields import N_

Conditions = tuple[tuple[Mapping[str, str], ...], ...]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A notice, and the conditions that it meets."""

    slug: str
    label: str
    groups: Conditions


def _subject(operator: str, *values: str) -> Conditions:
    """Any of these subjects."""
    return tuple(
        ({"property": "subject", "operator": operator, "value": value},) for value in values
    )


def _password_changed(words: str) -> Conditions:
    """Two notices share this subject; what they say tells them apart."""
    return (
        (
            {"property": "subject", "operator": "ends-with", "value": "] Password Changed"},
            {"property": "message", "operator": "contains", "value": words},
        ),
    )


def _ends(slug: str, label: str, *values: str) -> Preset:
    return Preset(slug=slug, label=label, groups=_subject("ends-with", *values))


def _contains(slug: str, label: str, *values: str) -> Preset:
    return Preset(slug=slug, label=label, groups=_subject("contains", *values))


def _starts(slug: str, label: str, *values: str) -> Preset:
    return Preset(slug=slug, label=label, groups=_subject("starts-with", *values))


PRESETS: tuple[tuple[str, tuple[Preset, ...]], ...] = (
    (
        N_("Comments"),
        (
            _contains("comment-held", N_("Comment awaits moderation"), '] Please moderate: "'),
            _contains(
                "comment-published",
                N_("Comment published"),
                '] Comment: "',
                '] Pingback: "',
                '] Trackback: "',
            ),
        ),
    ),
    (
        N_("Change of Admin Email"),
        (
            _ends(
                "admin-email-asked", N_("Admin email: change attempt"), "] New Admin Email Address"
            ),
            _ends(
                "admin-email-changed",
                N_("Admin email changed"),
                "] Admin Email Changed",
                "] Notice of Admin Email Change",
            ),
            _ends(
                "network-email-asked",
                N_("Network admin email: change attempt"),
                "] Network Admin Email Change Request",
            ),
            _ends(
                "network-email-changed",
                N_("Network admin email changed"),
                "] Notice of Network Admin Email Change",
            ),
        ),
    ),
    (
        N_("Change of User Email or Password"),
        (
            _ends("password-asked", N_("Password reset requested"), "] Password Reset"),
            Preset(
                slug="password-reset",
                label=N_("Password was reset (to the admin)"),
                groups=_password_changed("Password changed for user:"),
            ),
            Preset(
                slug="password-changed",
                label=N_("Password changed (to the user)"),
                groups=_password_changed("This notice confirms that your password was changed"),
            ),
            _ends("email-asked", N_("User email: change attempt"), "] Email Change Request"),
            _ends(
                "email-changed",
                N_("User email changed"),
                "] Email Changed",
                "] Notice of Email Change",
            ),
        ),
    ),
    (
        N_("Personal Data Requests"),
        (
            _contains("data-asked", N_("Request to be confirmed by the user"), "] Confirm Action:"),
            _contains("data-confirmed", N_("User confirmed a request"), "] Action Confirmed:"),
            _ends("data-erased", N_("Admin erased data"), "] Erasure Request Fulfilled"),
            _ends("data-export", N_("Admin sent the link to an export"), "] Personal Data Export"),
        ),
    ),
    (
        N_("Automatic Updates"),
        (
            _contains("update-plugins", N_("Plugins"), "] Some plugins "),
            _contains(
                "update-themes", N_("Themes"), "] Some themes ", "] Some plugins and themes "
            ),
            _contains(
                "update-core",
                N_("WordPress itself"),
                "] Your site has updated to WordPress ",
                " is available. Please update!",
                "] URGENT: Your site may be down due to a failed update",
            ),
            _contains("update-log", N_("Full log"), "] Background Update "),
        ),
    ),
    (
        N_("New User"),
        (
            _ends(
                "user-created-admin", N_("User created (to the admin)"), "] New User Registration"
            ),
            _ends("user-created", N_("User created (to the user)"), "] Login Details"),
            _ends("user-invited", N_("Invited to a site (network)"), "] Joining Confirmation"),
            _contains("user-activate", N_("User or site to be activated (network)"), "] Activate "),
            _starts(
                "user-registered",
                N_("User created (to the network admin)"),
                "New User Registration: ",
            ),
            Preset(
                slug="user-added",
                label=N_("User added or activated (network)"),
                groups=(
                    (
                        {"property": "subject", "operator": "starts-with", "value": "New "},
                        {"property": "subject", "operator": "contains", "value": " User: "},
                    ),
                ),
            ),
        ),
    ),
    (
        N_("New Site"),
        (
            _ends("site-created", N_("Site created (network)"), "] New Site Created"),
            _starts("site-registered", N_("Site activated (network)"), "New Site Registration: "),
            Preset(
                slug="site-welcome",
                label=N_("Site activated (to its admin)"),
                groups=(
                    (
                        {"property": "subject", "operator": "starts-with", "value": "New "},
                        {"property": "subject", "operator": "contains", "value": " Site: "},
                    ),
                ),
            ),
        ),
    ),
)
"""Headings, and the notices under each."""


def preset(slug: str) -> Preset | None:
    """A notice by its slug."""
    found = (one for _heading, presets in PRESETS for one in presets if one.slug == slug)
    return next(found, None)
