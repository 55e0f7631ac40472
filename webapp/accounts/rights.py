"""Who may do what: the one table of rights. docs/roles.md shows it, a test compares the two."""

from enum import StrEnum

from webapp.accounts.models import Role
from webapp.fields import N_


class Right(StrEnum):
    """Something that a person may do, at one site or in the whole installation."""

    VIEW_SITE = N_("view site")
    VIEW_LOG = N_("view log")
    SEND_TEST = N_("send test")
    RESEND_ORIGINAL = N_("resend to the original recipients")
    READ_BODY = N_("read body")
    RESEND_ELSEWHERE = N_("resend elsewhere")
    EDIT_SETTINGS = N_("edit settings")
    MANAGE_CREDENTIALS = N_("manage credentials")
    MANAGE_QUEUE = N_("manage queue")
    MANAGE_SITE_USERS = N_("manage users of the site")
    DELETE_SITE = N_("delete site")
    ADD_SITE = N_("add site")
    SYSTEM = N_("system")


class Access(StrEnum):
    """What a page asks for when it asks for no right."""

    PUBLIC = "public"
    SIGNED_IN = "signed in"


Policy = Right | Access

LOWEST: dict[Right, Role | None] = {
    Right.VIEW_SITE: Role.VIEWER,
    Right.VIEW_LOG: Role.VIEWER,
    Right.SEND_TEST: Role.SUPPORT,
    Right.RESEND_ORIGINAL: Role.SUPPORT,
    Right.READ_BODY: Role.OPERATOR,
    Right.RESEND_ELSEWHERE: Role.OPERATOR,
    Right.EDIT_SETTINGS: Role.OPERATOR,
    Right.MANAGE_CREDENTIALS: Role.OPERATOR,
    Right.MANAGE_QUEUE: Role.OPERATOR,
    Right.MANAGE_SITE_USERS: Role.OWNER,
    Right.DELETE_SITE: Role.OWNER,
    Right.ADD_SITE: None,
    Right.SYSTEM: None,
}
"""The lowest role that has the right; every role above has it too. None: instance admins only."""

LADDER = (Role.VIEWER, Role.SUPPORT, Role.OPERATOR, Role.OWNER)


def is_per_site(right: Right) -> bool:
    """Whether the right is held at one site, by a role there."""
    return LOWEST[right] is not None


def allows(right: Right, *, role: Role | None, is_admin: bool) -> bool:
    """Whether somebody with this role at the site (None: no role there) has the right."""
    if is_admin:
        return True
    lowest = LOWEST[right]
    return lowest is not None and role is not None and LADDER.index(role) >= LADDER.index(lowest)
