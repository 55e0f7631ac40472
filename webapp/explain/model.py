"""What an explanation consists of; sentences are English, marked, and translated when shown.

A sentence may hold these placeholders, and no others:

    %(account)s     address of the linked account        %(host)s   server that was talked to
    %(from_email)s  From Email of the mail               %(port)s   its port
    %(tenant)s      the organization of the account      %(limit)s  most that is taken, with unit
    %(app_name)s    name of the app registration         %(until)s  when the next try is due
    %(client_id)s   its Application or Client ID

A page renders with `gettext(sentence, **values_for(known, gettext))`, so a percent sign of its own
is written twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from webapp.fields import N_


class Who(StrEnum):
    """Who can put something right; `WHO_LABELS` has the words."""

    YOU = "you"
    ADMIN = "admin"
    """The administrator of the mailbox's Microsoft 365 organization."""
    MICROSOFT = "microsoft"
    WORKSPACE_ADMIN = "workspace-admin"
    """The administrator of the mailbox's Google Workspace organization."""
    GOOGLE = "google"
    PROVIDER = "provider"
    """The company that runs the mail server."""
    OPERATOR = "operator"
    """Whoever runs this Postroom."""


WHO_LABELS: Mapping[Who, str] = {
    Who.YOU: N_("You"),
    Who.ADMIN: N_("Your Microsoft 365 admin"),
    Who.MICROSOFT: N_("Microsoft"),
    Who.WORKSPACE_ADMIN: N_("Your Google Workspace admin"),
    Who.GOOGLE: N_("Google"),
    Who.PROVIDER: N_("Your mail provider"),
    Who.OPERATOR: N_("Whoever runs this Postroom"),
}


class Action(StrEnum):
    """What a page can do itself for a step."""

    NONE = ""
    SET_FROM = "set-from"
    """Set From Email to the address of the linked account."""
    REAUTHORISE = "reauthorise"
    ASK_ADMIN = "ask-admin"
    """The link for the administrator's consent, and the message that goes with it."""
    OPEN_CONNECTION = "open-connection"
    TEST_AGAIN = "test-again"
    OPEN_APP = "open-app"
    """The app registration where the provider keeps it."""
    COPY_ADMIN_MESSAGE = "copy-admin-message"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of "Who can put it right"; the sentence goes on from the label of `who`."""

    who: Who
    sentence: str
    on: bool


@dataclass(frozen=True)
class Step:
    """One numbered step, with what a button beside it does."""

    text: str
    action: Action = Action.NONE


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One failure, explained to whoever has to do something about it."""

    key: str
    title: str
    cause: str
    who: tuple[Part, ...]
    steps: tuple[Step, ...]
    admin_message: str = ""
    """Text to send to the administrator; empty where nothing is asked of one."""
    retry: bool = False
    """Whether it goes on by itself."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every sentence in it that is translated."""
        parts = (part.sentence for part in self.who)
        steps = (step.text for step in self.steps)
        return tuple(filter(None, (self.title, self.cause, *parts, *steps, self.admin_message)))


FALLBACKS: Mapping[str, str] = {
    "account": N_("the linked account"),
    "from_email": N_("the From Email"),
    "tenant": N_("your organization"),
    "app_name": N_("your app"),
    "client_id": N_("see the settings of the connection"),
    "host": N_("the mail server"),
    "port": N_("(see the settings)"),
    "limit": N_("the limit of the mailbox"),
    "until": N_("as soon as it can succeed"),
}
"""Words for placeholders whose value is not known."""


def values_for(
    known: Mapping[str, object], translate: Callable[[str], str] = str
) -> Mapping[str, object]:
    """A value for every placeholder: what is known, or general words for it."""
    return {name: known.get(name) or translate(fallback) for name, fallback in FALLBACKS.items()}
