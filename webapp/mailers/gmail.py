"""Google / Gmail: mail leaves through the Gmail API with permission from the mailbox itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from webapp.fields import N_, ask
from webapp.google.gmail import LARGEST, Gmail
from webapp.mailers.base import Mailer, Surroundings
from webapp.mailers.errors import Cause, PermanentError
from webapp.mailers.linked import LinkedConversation, megabytes


@dataclass(frozen=True, kw_only=True)
class GmailMailer(Mailer):
    """The settings of one mailbox at Google. The link itself is `grant_id`."""

    slug: ClassVar[str] = "gmail"
    label: ClassVar[str] = N_("Google / Gmail")
    description: ClassVar[str] = N_(
        "Sends through Gmail or Google Workspace with permission from the mailbox itself: no "
        "mailbox password is stored, and two-step sign-in keeps working."
    )
    service: ClassVar[str] = "Google"
    envelope: ClassVar[bool] = False
    max_recipients: ClassVar[int | None] = 500
    needs_link: ClassVar[bool] = True
    usual_limits: ClassVar[Mapping[str, int]] = {
        "concurrency": 2,
        "per_minute": 60,
        "per_day": 2_000,
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

    def open(self, surroundings: Surroundings) -> GmailConversation:
        return GmailConversation(self.grant_id, surroundings)

    def lane_key(self) -> str:
        """Empty: the lane is the mailbox's."""
        return ""


class GmailConversation(LinkedConversation):
    """Sends from one mailbox at Google."""

    def check(self, content: bytes) -> None:
        if len(content) > LARGEST:
            raise PermanentError(
                f"This mail is {megabytes(len(content))}. Gmail takes up to 35 MB.",
                cause_code=Cause.TOO_LARGE,
            )

    def connect(self, api: str) -> Gmail:
        return Gmail(api, ca_file=self._ca_file, time_limit=self._time_limit)
