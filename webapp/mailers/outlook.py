"""365 / Outlook: mail leaves through Microsoft Graph with permission from the mailbox itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from webapp.fields import N_, ask
from webapp.mailers.base import Conversation, Mailer, Surroundings


@dataclass(frozen=True, kw_only=True)
class OutlookMailer(Mailer):
    """The settings of one mailbox at Microsoft. The link itself is `grant_id`."""

    slug: ClassVar[str] = "outlook"
    label: ClassVar[str] = N_("365 / Outlook")
    description: ClassVar[str] = N_(
        "Sends through Microsoft 365 or Outlook.com with permission from the mailbox itself: no "
        "mailbox password is stored, and two-step sign-in keeps working."
    )
    envelope: ClassVar[bool] = False
    names_sender: ClassVar[bool] = False
    max_recipients: ClassVar[int | None] = 500
    needs_link: ClassVar[bool] = True
    usual_limits: ClassVar[Mapping[str, int]] = {
        "concurrency": 3,
        "per_minute": 30,
        "recipients_per_day": 10_000,
    }

    one_click: bool = field(
        default=True,
        metadata=ask(
            N_("One-Click Setup"),
            N_(
                "On: uses the app registration of this installation, so you only sign in. Off: you "
                "bring your own, below. Both links are kept when you switch."
            ),
        ),
    )
    shared_app: str = field(default="", metadata=ask(N_("App registration")))
    grant_id: int = 0
    """Filled in when the connection is loaded; 0 is not linked."""

    def open(self, surroundings: Surroundings) -> Conversation:
        """A conversation with Graph."""
        raise NotImplementedError

    def lane_key(self) -> str:
        """Not known here: the lane is the mailbox's."""
        return ""
