"""One word, one shape and one tone per state, the same on every page.

The shape says what kind of thing a state is, so that nobody needs the colour: ring, filled disc,
triangle, octagon, square, diamond. Words are English and marked; they are translated when shown.
"""

from dataclasses import dataclass
from enum import StrEnum

from webapp.delivery.models import State
from webapp.fields import N_


class Tone(StrEnum):
    """The class that colours a status or a notice."""

    GOOD = "good"
    INFO = "info"
    WARN = "warn"
    BAD = "bad"
    HOLD = "hold"


class SiteState(StrEnum):
    """How a site stands, as the board says it."""

    WORKING = "working"
    FAILING = "failing"
    QUIET = "quiet"
    NO_CONNECTION = "no-connection"
    NO_MAIL = "no-mail"
    ON_HOLD = "on-hold"
    REDIRECTED = "redirected"
    NOT_SENT = "not-sent"


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a state looks: the name of an icon, a tone, a word."""

    icon: str
    tone: Tone
    word: str


MAIL: dict[State, Status] = {
    State.HELD: Status(icon="held", tone=Tone.HOLD, word=N_("Held")),
    State.QUEUED: Status(icon="queued", tone=Tone.INFO, word=N_("Queued")),
    State.SENDING: Status(icon="sending", tone=Tone.INFO, word=N_("Sending")),
    State.DEFERRED: Status(icon="retry", tone=Tone.WARN, word=N_("Retrying")),
    State.UNCERTAIN: Status(icon="unsure", tone=Tone.WARN, word=N_("Unclear")),
    State.SENT: Status(icon="sent", tone=Tone.GOOD, word=N_("Sent")),
    State.FAILED: Status(icon="failed", tone=Tone.BAD, word=N_("Failed")),
    State.CANCELLED: Status(icon="cancelled", tone=Tone.HOLD, word=N_("Cancelled")),
    State.BLOCKED: Status(icon="blocked", tone=Tone.HOLD, word=N_("Not sent")),
}

SITE: dict[SiteState, Status] = {
    SiteState.WORKING: Status(icon="delivered", tone=Tone.GOOD, word=N_("Working")),
    SiteState.FAILING: Status(icon="failed", tone=Tone.BAD, word=N_("Failing")),
    SiteState.QUIET: Status(icon="soon", tone=Tone.WARN, word=N_("Quiet")),
    SiteState.NO_CONNECTION: Status(icon="soon", tone=Tone.WARN, word=N_("No connection yet")),
    SiteState.NO_MAIL: Status(icon="queued", tone=Tone.INFO, word=N_("No mail yet")),
    SiteState.ON_HOLD: Status(icon="held", tone=Tone.HOLD, word=N_("On hold")),
    SiteState.REDIRECTED: Status(icon="redirect", tone=Tone.HOLD, word=N_("Redirected")),
    SiteState.NOT_SENT: Status(icon="blocked", tone=Tone.HOLD, word=N_("Not sent")),
}

NOTICE_ICONS: dict[Tone, str] = {
    Tone.GOOD: "delivered",
    Tone.INFO: "info",
    Tone.WARN: "soon",
    Tone.BAD: "failed",
    Tone.HOLD: "held",
}


def status_of(state: State | SiteState | Status | str) -> Status:
    """How to show the state of a mail or of a site; raises ValueError for anything else."""
    if isinstance(state, Status):
        return state
    if isinstance(state, SiteState):
        return SITE[state]
    return MAIL[State(state)]
