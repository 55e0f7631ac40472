"""Mailers whose account was linked by OAuth: a token for each mail, a newer one when refused."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Protocol

from webapp.mailers.base import (
    AccessToken,
    Conversation,
    Envelope,
    Receipt,
    Surroundings,
    TokenSource,
)
from webapp.mailers.errors import Cause, DeliveryError, NeedsReauthorisation
from webapp.mailers.http_wire import TIME_LIMIT, Answer, TokenRefused


class Post(Protocol):
    """An interface that takes whole mails."""

    api: str

    def send_mime(self, token: str, mime: bytes) -> Answer:
        """Send one; raises DeliveryError, TokenRefused among them."""

    def close(self) -> None:
        """Let go of the connection."""


class LinkedConversation(Conversation):
    """Sends from one mailbox; the connection to the service is kept from mail to mail."""

    def __init__(
        self,
        grant_id: int,
        surroundings: Surroundings,
        time_limit: tuple[float, float] = TIME_LIMIT,
    ) -> None:
        self._grant_id = grant_id
        self._tokens = surroundings.tokens
        self._ca_file = surroundings.ca_file
        self._time_limit = time_limit
        self._post: Post | None = None

    @abstractmethod
    def check(self, content: bytes) -> None:
        """Raise PermanentError for what this service is known not to take."""

    @abstractmethod
    def connect(self, api: str) -> Post:
        """The interface at this root."""

    def send(self, envelope: Envelope, content: bytes) -> Receipt:
        """The recipients are those in the headers of the content; the envelope says the same."""
        self.check(content)
        tokens = self._linked()
        answer = self._send(tokens, tokens.token(self._grant_id), content)
        return Receipt(remote_id=answer.request_id, code=str(answer.status), log=answer.log)

    def close(self) -> None:
        if self._post is not None:
            self._post.close()

    def _linked(self) -> TokenSource:
        if self._tokens is None or not self._grant_id:
            raise NeedsReauthorisation("No account is linked.", cause_code=Cause.AUTH)
        return self._tokens

    def _send(self, tokens: TokenSource, token: AccessToken, content: bytes) -> Answer:
        try:
            return self._post_of(token).send_mime(token.value, content)
        except TokenRefused as refused:
            return self._send_again(tokens, refused, token, content)

    def _send_again(
        self, tokens: TokenSource, refused: TokenRefused, token: AccessToken, content: bytes
    ) -> Answer:
        """A token can be revoked before its time: once more with a newer one, then it is final."""
        try:
            newer = tokens.token(self._grant_id, refused=token.value, claims=refused.claims)
            answer = self._post_of(newer).send_mime(newer.value, content)
        except DeliveryError as error:
            error.log = (*refused.log, *error.log)
            raise
        return replace(answer, log=(*refused.log, *answer.log))

    def _post_of(self, token: AccessToken) -> Post:
        """Linking again can move an account to another cloud."""
        if self._post is None or self._post.api != token.api:
            self.close()
            self._post = self.connect(token.api)
        return self._post


def megabytes(size: int) -> str:
    """A size, rounded up: or a mail that is a little too large would be said to fit."""
    tenths = -(-size * 10 // (1024 * 1024))
    return f"{tenths // 10}.{tenths % 10} MB"
