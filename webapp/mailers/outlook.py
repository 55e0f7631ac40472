"""365 / Outlook: mail leaves through Microsoft Graph with permission from the mailbox itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from webapp.fields import N_, ask
from webapp.mailers.base import AccessToken, Mailer, Surroundings
from webapp.mailers.errors import Cause, PermanentError
from webapp.mailers.http_wire import TIME_LIMIT, TokenRefused
from webapp.mailers.linked import LinkedConversation, megabytes
from webapp.microsoft import sent_items
from webapp.microsoft.graph import Graph

LARGEST = 2 * 1024 * 1024
"""Bytes of MIME in one call. Above some 2.2 MB Microsoft was seen to answer 200 and send nothing.

Reported in https://github.com/microsoftgraph/microsoft-graph-docs-contrib/issues/3079
"""


@dataclass(frozen=True, kw_only=True)
class OutlookMailer(Mailer):
    """The settings of one mailbox at Microsoft. The link itself is `grant_id`."""

    slug: ClassVar[str] = "outlook"
    label: ClassVar[str] = N_("365 / Outlook")
    description: ClassVar[str] = N_(
        "Sends through Microsoft 365 or Outlook.com with permission from the mailbox itself: no "
        "mailbox password is stored, and two-step sign-in keeps working."
    )
    service: ClassVar[str] = "Microsoft"
    envelope: ClassVar[bool] = False
    names_sender: ClassVar[bool] = False
    max_recipients: ClassVar[int | None] = 500
    needs_link: ClassVar[bool] = True
    settles: ClassVar[bool] = True
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

    def open(self, surroundings: Surroundings) -> OutlookConversation:
        return OutlookConversation(self.grant_id, surroundings)

    def lane_key(self) -> str:
        """Empty: the lane is the mailbox's."""
        return ""

    def can_settle(self, surroundings: Surroundings) -> bool:
        """Whether the account permits looking into its Sent Items."""
        tokens = surroundings.tokens
        if tokens is None or not self.grant_id:
            return False
        return sent_items.may_look(tokens.permissions(self.grant_id))

    def settle(self, message_id: str, surroundings: Surroundings) -> bool | None:
        """Whether the mail lies in Sent Items, where every mail that left is put."""
        tokens = surroundings.tokens
        if tokens is None or not self.can_settle(surroundings):
            return None
        token = tokens.token(self.grant_id)
        try:
            return self._is_there(token, message_id, surroundings)
        except TokenRefused as refused:
            newer = tokens.token(self.grant_id, refused=token.value, claims=refused.claims)
            return self._is_there(newer, message_id, surroundings)

    def _is_there(
        self, token: AccessToken, message_id: str, surroundings: Surroundings
    ) -> bool | None:
        graph = Graph(token.api, ca_file=surroundings.ca_file, time_limit=TIME_LIMIT)
        try:
            return sent_items.is_there(graph, token.value, message_id)
        finally:
            graph.close()


class OutlookConversation(LinkedConversation):
    """Sends from one mailbox at Microsoft."""

    def check(self, content: bytes) -> None:
        if len(content) > LARGEST:
            raise PermanentError(
                f"This mail is {megabytes(len(content))}. "
                "Without permission to make drafts, Microsoft takes up to 2 MB in one call.",
                cause_code=Cause.TOO_LARGE,
            )

    def connect(self, api: str) -> Graph:
        return Graph(api, ca_file=self._ca_file, time_limit=self._time_limit)
