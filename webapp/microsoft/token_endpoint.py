"""What a token endpoint answers (OAuth 2.0, RFC 6749, 5.2), and the wire MSAL asks it by.

Whatever comes back is a token, or one of the kinds of failure: a gateway's page is no refusal, and
the words hold no secret of ours.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import NameResolutionError, ProtocolError

from webapp.fields import N_
from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    FailureKind,
    Misconfigured,
    NeedsReauthorisation,
    TransientError,
    scrub,
)
from webapp.microsoft import codes

METADATA_SECONDS = 24 * 3600.0
MAX_WORDS = 1_000
NOT_OAUTH = N_("What answered at the sign-in address is not the sign-in service.")

_IDS = (("Trace ID", "trace_id"), ("Correlation ID", "correlation_id"))

_KINDS: Mapping[FailureKind, type[DeliveryError]] = {
    FailureKind.NEEDS_REAUTHORISATION: NeedsReauthorisation,
    FailureKind.TRANSIENT: TransientError,
}
"""Anything else that a token endpoint says is a matter of settings."""


class Wire:
    """What MSAL makes its requests by: keeps metadata for a day, and the last answer at hand."""

    def __init__(
        self, session: requests.Session, metadata: dict[str, tuple[float, requests.Response]]
    ) -> None:
        self.last: requests.Response | None = None
        self._session = session
        self._metadata = metadata
        self._fetched: dict[str, requests.Response] = {}

    def get(self, url: str, **options: Any) -> requests.Response:
        """MSAL's: metadata only."""
        until, known = self._metadata.get(url, (0.0, None))
        if known is not None and time.monotonic() < until:
            return known
        self.last = self._fetched[url] = self._session.get(url, **options)
        return self.last

    def post(self, url: str, **options: Any) -> requests.Response:
        """MSAL's: the token endpoint. A redirect would carry the secret elsewhere."""
        self.last = self._session.post(url, allow_redirects=False, **options)
        return self.last

    def remember(self) -> None:
        """The metadata made sense."""
        until = time.monotonic() + METADATA_SECONDS
        self._metadata.update({url: (until, answer) for url, answer in self._fetched.items()})
        self.last = None

    def close(self) -> None:
        """MSAL's; the session is closed by whoever made it."""


def body_of(answer: requests.Response) -> Mapping[str, Any]:
    """An answer in JSON; empty where a gateway or a proxy spoke."""
    try:
        found = answer.json()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def refusal(
    body: Mapping[str, Any], answer: requests.Response | None, hidden: Sequence[str]
) -> DeliveryError:
    """What a token endpoint means by an answer without a token."""
    status = answer.status_code if answer is not None else 400
    error, said = _text(body, "error"), _text(body, "error_description")
    listed = body.get("error_codes")
    numbers = [str(number) for number in listed] if isinstance(listed, list) else []
    if not numbers and (found := codes.find_code(said)):
        numbers = [found.removeprefix("AADSTS")]
    names = [f"AADSTS{number}" for number in numbers]
    code = next((name for name in names if codes.is_known(name)), names[0] if names else error)
    words = _words(body, said or error, hidden)
    if status == 429 or status >= 500:
        return TransientError(
            words or f"HTTP {status}",
            code=code or f"HTTP {status}",
            retry_after=retry_after(answer),
            cause_code=Cause.RATE if status == 429 else Cause.UNKNOWN,
        )
    if not error:
        return TransientError(NOT_OAUTH, code=f"HTTP {status}", cause_code=Cause.PROTOCOL)
    kind = codes.kind_of_token_error(error, numbers, _text(body, "suberror"))
    raised = _KINDS.get(kind, Misconfigured)
    cause = Cause.AUTH if raised is NeedsReauthorisation else Cause.UNKNOWN
    return raised(words, code=code[:40], cause_code=cause)


def _text(body: Mapping[str, Any], name: str) -> str:
    """A text of an answer; empty where something else stands, which OAuth never has."""
    value = body.get(name)
    return value if isinstance(value, str) else ""


def _words(body: Mapping[str, Any], said: str, hidden: Sequence[str]) -> str:
    """The first line of what was said, and the ids that Microsoft's support asks for."""
    lines = scrub(said, hidden).splitlines()
    words = lines[0].strip()[: MAX_WORDS - 160] if lines else ""
    for label, name in _IDS:
        stated = re.search(rf"{label}: *([0-9A-Za-z-]+)", said)
        value = stated[1] if stated else _text(body, name)[:40]
        if value and value not in words:
            words += f" {label}: {value}"
    return words.strip()


def retry_after(answer: requests.Response | None) -> timedelta | None:
    """Seconds; no date was ever seen here."""
    text = answer.headers.get("Retry-After", "") if answer is not None else ""
    digits = text[:10]  # a number of thousands of digits is one that Python refuses to read
    return timedelta(seconds=min(int(digits), 3600)) if text.isdecimal() else None


def network_failure(error: requests.RequestException, hidden: Sequence[str]) -> TransientError:
    """No answer. The innermost error says why, without addresses of objects and of proxies."""
    innermost = list(_chain(error))[-1]
    url = error.request.url if error.request is not None else None
    host = urlsplit(url or "").hostname or ""
    words = f"{host}: {innermost}" if host else str(innermost)
    raised = TransientError(scrub(words, hidden)[:MAX_WORDS], cause_code=_cause(error))
    raised.unreached = raised.cause_code is not Cause.LOST
    return raised


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _cause(error: requests.RequestException) -> Cause:
    if isinstance(error, requests.exceptions.SSLError):
        return Cause.TLS
    if isinstance(error, requests.ReadTimeout):
        return Cause.TIMEOUT
    found = {type(inner) for inner in _chain(error)}
    if NameResolutionError in found:
        return Cause.DNS
    return Cause.LOST if ProtocolError in found else Cause.CONNECT
