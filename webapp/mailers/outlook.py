"""365 / Outlook: mail leaves through Microsoft Graph with permission from the mailbox itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from webapp.fields import N_, ask
from webapp.mailers.base import (
    AccessToken,
    Conversation,
    Envelope,
    Mailer,
    Receipt,
    Surroundings,
    TokenSource,
)
from webapp.mailers.errors import Cause, DeliveryError, NeedsReauthorisation, PermanentError
from webapp.mailers.http_wire import TIME_LIMIT, Answer, TokenRefused
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
        return OutlookConversation(self, surroundings)

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


class OutlookConversation(Conversation):
    """Sends from one mailbox; the connection to Graph is kept from mail to mail."""

    def __init__(
        self,
        mailer: OutlookMailer,
        surroundings: Surroundings,
        time_limit: tuple[float, float] = TIME_LIMIT,
    ) -> None:
        self._grant_id = mailer.grant_id
        self._tokens = surroundings.tokens
        self._ca_file = surroundings.ca_file
        self._time_limit = time_limit
        self._graph: Graph | None = None

    def send(self, envelope: Envelope, content: bytes) -> Receipt:
        """The recipients are those in the headers of the content; the envelope says the same."""
        if len(content) > LARGEST:
            raise _too_large(len(content))
        tokens = self._linked()
        answer = self._send(tokens, tokens.token(self._grant_id), content)
        return Receipt(remote_id=answer.request_id, code=str(answer.status), log=answer.log)

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()

    def _linked(self) -> TokenSource:
        if self._tokens is None or not self._grant_id:
            raise NeedsReauthorisation("No account is linked.", cause_code=Cause.AUTH)
        return self._tokens

    def _send(self, tokens: TokenSource, token: AccessToken, content: bytes) -> Answer:
        try:
            return self._graph_of(token).send_mime(token.value, content)
        except TokenRefused as refused:
            return self._send_again(tokens, token, refused, content)

    def _send_again(
        self, tokens: TokenSource, token: AccessToken, refused: TokenRefused, content: bytes
    ) -> Answer:
        """A token can be revoked before its time: once more with a newer one, then it is final."""
        try:
            newer = tokens.token(self._grant_id, refused=token.value, claims=refused.claims)
            answer = self._graph_of(newer).send_mime(newer.value, content)
        except DeliveryError as error:
            error.log = (*refused.log, *error.log)
            raise
        return replace(answer, log=(*refused.log, *answer.log))

    def _graph_of(self, token: AccessToken) -> Graph:
        """Linking again can move an account to another cloud."""
        if self._graph is None or self._graph.api != token.api:
            self.close()
            self._graph = Graph(token.api, ca_file=self._ca_file, time_limit=self._time_limit)
        return self._graph


def _too_large(size: int) -> PermanentError:
    # Rounded up, or a mail that is a little too large would be said to fit.
    tenths = -(-size * 10 // (1024 * 1024))
    return PermanentError(
        f"This mail is {tenths // 10}.{tenths % 10} MB. "
        "Without permission to make drafts, Microsoft takes up to 2 MB in one call.",
        cause_code=Cause.TOO_LARGE,
    )
