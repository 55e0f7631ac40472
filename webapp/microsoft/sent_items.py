"""Sent Items: whether a mail went out whose answer was lost.

Facts: https://learn.microsoft.com/en-us/graph/api/user-list-messages (August 2026). The copy
appears a while after the mail was taken, so one look in vain proves nothing.
"""

from collections.abc import Collection
from urllib.parse import quote

from webapp.mailers.errors import Cause, DeliveryError, TransientError
from webapp.mailers.http_wire import TokenRefused
from webapp.microsoft.graph import Graph

PERMISSIONS = frozenset({"mail.readwrite", "mail.read", "mail.readbasic"})
"""Any of these lets an app look, in lower case."""
_CANNOT_KNOW = ("400", "403", "404")


def may_look(granted: Collection[str]) -> bool:
    """Whether these permissions are enough."""
    return any(permission.casefold() in PERMISSIONS for permission in granted)


def path_of(message_id: str) -> str:
    """Where Graph answers for one Message-ID, ready for the wire."""
    value = message_id.replace("'", "''")
    wanted = quote(f"internetMessageId eq '{value}'", safe="")
    select = quote("id,sentDateTime,internetMessageId", safe="")
    return f"/me/mailFolders/sentitems/messages?$filter={wanted}&$select={select}&$top=2"


def is_there(graph: Graph, token: str, message_id: str) -> bool | None:
    """Whether the mail lies there; None when this account cannot be asked. Raises DeliveryError."""
    try:
        answer = graph.ask(token, path_of(message_id))
    except TokenRefused:
        raise
    except DeliveryError as error:
        if error.code.startswith(_CANNOT_KNOW):
            return None
        raise
    found = answer.get("value")
    if not isinstance(found, list):
        raise TransientError("the answer is no list of mails", cause_code=Cause.PROTOCOL)
    return any(_is_it(each, message_id) for each in found)


def _is_it(found: object, message_id: str) -> bool:
    """A server that does not know the filter would show any mail."""
    return isinstance(found, dict) and found.get("internetMessageId") == message_id
