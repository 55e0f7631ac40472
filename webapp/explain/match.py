"""Which explanation belongs to a failure. Every failure gets one; nothing here raises.

Tried in order, and the first that fits wins: the code, the remote's words, our own cause, a general
text. Within the code the more exact goes first: a number of Microsoft's before the name that OAuth
gives to many failures, and both before a bare HTTP status.
"""

import re
from collections.abc import Iterator

from webapp.explain import google
from webapp.explain.model import Explanation
from webapp.explain.texts import EXPLANATIONS
from webapp.mailers.errors import Cause
from webapp.microsoft.codes import OAUTH_NAMES, find_code, look_up

MICROSOFT = "outlook"
"""The mailer whose codes are Microsoft's."""
GOOGLE = "gmail"
"""The mailer whose codes are Google's."""

# Errors of our own on the way back from a provider's page, beside those that OAuth names.
LINK_STATE = "invalid_state"
LINK_NO_CODE = "no_code"
LINK_SCOPE_MISSING = "scope_missing"
LINK_OTHER_ACCOUNT = "other_account"
SCOPES_CHANGED = "scopes-changed"
"""A renewal of ours brought a token that may not send any more."""

_LINK_KEYS = {
    LINK_STATE: "link-state",
    "mismatching_state": "link-state",
    LINK_NO_CODE: "link-incomplete",
    LINK_SCOPE_MISSING: "permissions-changed",
    LINK_OTHER_ACCOUNT: "wrong-account",
}

_LINK_KEYS_AT_GOOGLE = {
    LINK_STATE: "google-link-state",
    "mismatching_state": "google-link-state",
    LINK_NO_CODE: "google-link-incomplete",
    LINK_SCOPE_MISSING: "google-permission",
    "invalid_grant": "google-link-again",
}

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_HTTP_STATUS = re.compile(r"[1-5][0-9]{2}")
_MAIL_STATUS = re.compile(r"(?<![0-9.])[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9.])")

_Words = tuple[str, ...]

# What the code says, refined by the words that came with it: (key, all of these words, key then).
_REFINED: tuple[tuple[str, _Words, str], ...] = (
    ("permission-missing", ("OData",), "mailbox-policy"),
    ("permission-missing", ("AccessPolicy",), "mailbox-policy"),
    ("graph-request", ("4MB",), "mail-too-large"),
    ("graph-request", ("4 MB",), "mail-too-large"),
    ("graph-request", ("maximum request length",), "mail-too-large"),
    ("app-unknown", ("consumers",), "personal-account"),
    ("link-refused", ("revoked",), "sessions-revoked"),
    ("consent-missing", ("unverified",), "unverified-publisher"),
    ("admin-consent", ("unverified",), "unverified-publisher"),
    ("declined", ("unverified",), "unverified-publisher"),
    ("consent-missing", ("admin approval",), "admin-consent"),
    ("declined", ("admin approval",), "admin-consent"),
)

# Status codes of mail systems (RFC 3463) that Exchange Online gives a meaning of its own.
_MAIL_STATUSES = {
    "5.7.139": "smtp-password-blocked",
    "5.7.30": "smtp-password-retired",
    "5.7.60": "smtp-send-as-denied",
    "5.2.252": "smtp-send-as-denied",
    "5.7.705": "outbound-blocked",
    "5.7.708": "outbound-blocked",
    "5.7.233": "tenant-limit",
}

_BY_WORDS_OF_MICROSOFT: tuple[tuple[_Words, str], ...] = (
    (("cross cloud request",), "wrong-cloud"),
    (("CompactToken parsing failed",), "token-refused"),
    (("JWT is not well formed",), "token-refused"),
    (("Lifetime validation failed",), "token-refused"),
    (("not enabled for consumers",), "personal-account"),
    (("Proof Key for Code Exchange is required",), "platform-not-web"),
    (("unverified",), "unverified-publisher"),
    (("need admin approval",), "admin-consent"),
    (("may not contain a query string",), "redirect-address"),
    (("apps outside a directory",), "azure-directory"),
    (("SendAsDenied",), "send-as-denied"),
    (("account suspended",), "account-suspended"),
    (("bad outbound sender",), "outbound-blocked"),
    (("certificate verify failed",), "microsoft-tls"),
    (("certificate_verify_failed",), "microsoft-tls"),
)

_BY_WORDS_OF_GOOGLE: tuple[tuple[_Words, str], ...] = (
    (("account has been deleted",), "google-account-gone"),
    (("account has been disabled",), "google-account-gone"),
    (("user is suspended",), "google-account-gone"),
    (("invalid_rapt",), "google-session-policy"),
    (("mail service not enabled",), "google-no-mailbox"),
    (("has not been used in project",), "google-api-off"),
    (("insufficient authentication scopes",), "google-permission"),
    (("recipient address required",), "google-recipients"),
    (("invalid to header",), "google-recipients"),
    (("certificate verify failed",), "google-tls"),
    (("certificate_verify_failed",), "google-tls"),
)

_BY_WORDS: tuple[tuple[_Words, str], ...] = (
    (("SmtpClientAuthentication is disabled",), "smtp-password-blocked"),
    (("security defaults",), "smtp-password-blocked"),
    (("basic authentication is not supported",), "smtp-password-retired"),
    (("SendAsDenied",), "smtp-send-as-denied"),
    (("bad outbound sender",), "outbound-blocked"),
    (("authorize", "unsolicited"), "bulk-refused"),
    (("unauthenticated senders not allowed",), "login-needed"),
    (("certificate verify failed",), "certificate-not-trusted"),
    (("certificate_verify_failed",), "certificate-not-trusted"),
    (("certificate has expired",), "certificate-not-trusted"),
    (("self-signed certificate",), "certificate-not-trusted"),
    (("could not authenticate",), "login-refused"),
    (("SMTP connect() failed",), "no-connection"),
)

_OWNER_LOST = "owner-lost"
_LOST = {Cause.LOST_ANSWER, _OWNER_LOST}

_BY_CAUSE_AT_MICROSOFT: dict[str, str] = {
    Cause.DNS: "microsoft-unreachable",
    Cause.CONNECT: "microsoft-unreachable",
    Cause.TLS: "microsoft-tls",
    Cause.AUTH: "token-refused",
    Cause.RATE: "throttled",
    Cause.TIMEOUT: "microsoft-unreachable",
    Cause.LOST: "microsoft-unreachable",
    Cause.LOST_ANSWER: "answer-unclear",
    _OWNER_LOST: "answer-unclear",
    Cause.PROTOCOL: "microsoft-unreachable",
    Cause.SENDER_REFUSED: "send-as-denied",
    Cause.RECIPIENT_REFUSED: "recipients-invalid",
    Cause.CONTENT_REFUSED: "mail-unreadable",
    Cause.TOO_LARGE: "mail-too-large",
}

_BY_CAUSE: dict[str, str] = {
    Cause.DNS: "host-unknown",
    Cause.CONNECT: "no-connection",
    Cause.TLS: "no-encryption",
    Cause.AUTH: "login-refused",
    Cause.RATE: "slow-down",
    Cause.TIMEOUT: "no-answer",
    Cause.LOST: "connection-lost",
    Cause.LOST_ANSWER: "answer-lost",
    _OWNER_LOST: "answer-lost",
    Cause.PROTOCOL: "no-mail-server",
    Cause.UNSUPPORTED: "not-supported",
    Cause.SENDER_REFUSED: "sender-refused",
    Cause.RECIPIENT_REFUSED: "recipient-refused",
    Cause.TOO_MANY_RECIPIENTS: "too-many-recipients",
    Cause.CONTENT_REFUSED: "content-refused",
    Cause.TOO_LARGE: "too-large",
}


def explain(
    *, mailer: str, code: str, words: str, cause: str = "", status: int | None = None
) -> Explanation:
    """The explanation of a failed attempt.

    `code` is as the attempt keeps it (`403 ErrorSendAsDenied`, `AADSTS700082`, `550 5.1.1`);
    `status` is the HTTP status, where the code does not begin with it.
    """
    if mailer == MICROSOFT:
        keys = _keys_of_microsoft(code, words, cause, status)
    elif mailer == GOOGLE:
        keys = _keys_of_google(code, words, cause, status)
    else:
        keys = _keys_of_servers(code, words, cause)
    found = EXPLANATIONS[next(keys)]
    if cause in _LOST and found.retry:
        # "It is kept and tried again" would not be true of a mail that may have gone out.
        causes = {MICROSOFT: _BY_CAUSE_AT_MICROSOFT, GOOGLE: google.BY_CAUSE}
        return EXPLANATIONS[causes.get(mailer, _BY_CAUSE)[cause]]
    return found


def explain_link(error: str, description: str, mailer: str = MICROSOFT) -> Explanation:
    """The explanation when linking a mailbox failed.

    `error` and `description` are what came back from the provider's page or from the exchange of
    the code; or `error` is one of the `LINK_…` words. Both empty: nothing came back.
    """
    error = error or ("" if description else LINK_NO_CODE)
    keys = _LINK_KEYS | _LINK_KEYS_AT_GOOGLE if mailer == GOOGLE else _LINK_KEYS
    if error in keys:
        return EXPLANATIONS[keys[error]]
    return explain(mailer=mailer, code=error, words=description)


def _keys_of_microsoft(code: str, words: str, cause: str, status: int | None) -> Iterator[str]:
    """Keys in the order in which they count; the last is the general one."""
    if status is None and (begins := _HTTP_STATUS.match(code)):
        status = int(begins[0])
    of_status = look_up(f"HTTP {status}")
    if code == SCOPES_CHANGED:
        yield "permissions-changed"
    for name in _names(code, words):
        if (known := look_up(name)) is not None:
            key = _refined(known.about, words)
            if key == "answer-unclear" and status is not None and (status < 500 or status == 503):
                # A refusal with a code that says nothing: nothing was sent.
                key = of_status.about if of_status else "graph-busy"
            yield key
    yield from _by_mail_status(code, words, "send-as-denied")
    yield from _by_words(_BY_WORDS_OF_MICROSOFT, words)
    yield from (known.about for name in _NAME.findall(words) if (known := look_up(name)))
    if of_status is not None and cause not in _LOST:
        yield _refined(of_status.about, words)
    if cause in _BY_CAUSE_AT_MICROSOFT:
        yield _BY_CAUSE_AT_MICROSOFT[cause]
    if cause in _BY_CAUSE:
        yield _BY_CAUSE[cause]
    yield "microsoft-unknown"


def _keys_of_google(code: str, words: str, cause: str, status: int | None) -> Iterator[str]:
    """Keys in the order in which they count; the last is the general one."""
    if status is None and (begins := _HTTP_STATUS.match(code)):
        status = int(begins[0])
    refined = [*_by_words(_BY_WORDS_OF_GOOGLE, words)]
    for name in _NAME.findall(code):
        if (key := google.BY_CODE.get(name)) is not None:
            # What comes with `invalid_grant` or a bad argument says more than these.
            yield from refined
            yield key
    yield from refined
    if status is not None and status in google.BY_STATUS and cause not in _LOST:
        if cause == Cause.RECIPIENT_REFUSED:
            yield google.BY_CAUSE[cause]
        yield google.BY_STATUS[status]
    if cause in google.BY_CAUSE:
        yield google.BY_CAUSE[cause]
    if cause in _BY_CAUSE:
        yield _BY_CAUSE[cause]
    yield "google-unknown"


def _names(code: str, words: str) -> Iterator[str]:
    """Microsoft's codes, the most exact first."""
    names = _NAME.findall(code)
    yield from (name for name in names if name not in OAUTH_NAMES)
    yield find_code(words)
    yield from (name for name in names if name in OAUTH_NAMES)


def _keys_of_servers(code: str, words: str, cause: str) -> Iterator[str]:
    yield from _by_mail_status(code, words, "smtp-send-as-denied")
    yield from _by_words(_BY_WORDS, words)
    if cause in _BY_CAUSE:
        yield _BY_CAUSE[cause]
    yield "unknown"


def _by_mail_status(code: str, words: str, send_as: str) -> Iterator[str]:
    for status in _MAIL_STATUS.findall(f"{code} {words}"):
        if (key := _MAIL_STATUSES.get(status)) is not None:
            yield send_as if key == "smtp-send-as-denied" else key


def _by_words(table: tuple[tuple[_Words, str], ...], words: str) -> Iterator[str]:
    return (key for all_of, key in table if _all_in(all_of, words))


def _refined(key: str, words: str) -> str:
    better = (then for of, all_of, then in _REFINED if of == key and _all_in(all_of, words))
    return next(better, key)


def _all_in(all_of: _Words, words: str) -> bool:
    folded = words.casefold()
    return all(word.casefold() in folded for word in all_of)
