"""Microsoft's error codes: what each means for a delivery, and which explanation tells of it.

Three sources give codes: the sign-in service (OAuth names and AADSTS numbers), Graph and Exchange
behind it (`ErrorSendAsDenied`, or only an HTTP status), and mail that came back. Microsoft changes
AADSTS numbers, so a number refines what the OAuth name says and is never the only condition.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from webapp.mailers.errors import Cause, FailureKind

_AADSTS = re.compile(r"AADSTS[0-9]{3,12}", re.IGNORECASE)


class Act(StrEnum):
    """Who has to do something before it works again."""

    OWNER = "owner"
    """The owner of the mailbox signs in again."""
    ADMIN = "admin"
    """The administrator of the mailbox's organization."""
    APP = "app"
    """Whoever keeps the app registration, or the settings here that name it."""
    SITE = "site"
    """Whoever writes the mail; trying again would not help."""
    NOBODY = "nobody"
    """It goes on by itself."""


_KINDS = {
    Act.OWNER: FailureKind.NEEDS_REAUTHORISATION,
    Act.ADMIN: FailureKind.NEEDS_REAUTHORISATION,
    Act.APP: FailureKind.MISCONFIGURED,
    Act.SITE: FailureKind.PERMANENT,
    Act.NOBODY: FailureKind.TRANSIENT,
}


@dataclass(frozen=True, kw_only=True)
class Code:
    """One code: the kind of failure, the key of its explanation, who has to act."""

    kind: FailureKind
    about: str
    who: Act


@dataclass(frozen=True, kw_only=True)
class _Group:
    about: str
    who: Act
    codes: tuple[str, ...]
    kind: FailureKind | None = None
    """Only where it is not the one that follows from who must act."""


def _sign_in(about: str, who: Act, numbers: str) -> _Group:
    return _Group(about=about, who=who, codes=tuple(f"AADSTS{n}" for n in numbers.split()))


def _named(about: str, who: Act, names: str, kind: FailureKind | None = None) -> _Group:
    return _Group(about=about, who=who, codes=tuple(names.split()), kind=kind)


_SIGN_IN = (
    # The app registration, or the settings that name it
    _sign_in("secret-wrong", Act.APP, "7000215"),
    _sign_in("secret-expired", Act.APP, "7000222"),
    _sign_in("app-login-refused", Act.APP, "70002 7000218"),
    _sign_in("certificate-refused", Act.APP, "700027 700030 50012 50003"),
    _sign_in("platform-not-web", Act.APP, "700025 700084 9002325"),
    _sign_in("app-unknown", Act.APP, "700016 700011 70001"),
    _sign_in("app-disabled", Act.ADMIN, "7000112 1000031"),
    _sign_in("single-tenant", Act.APP, "50194"),
    _sign_in("account-types", Act.APP, "90130 9002332 9001023"),
    _sign_in("personal-account", Act.APP, "500200"),
    _sign_in("redirect-address", Act.APP, "50011 500113 500116 900971 70004"),
    _sign_in("wrong-cloud", Act.APP, "900382 900432 900439 900440 90038 90051"),
    _sign_in("tenant-unknown", Act.APP, "90002 900023 90019 50059"),
    _sign_in("scope-refused", Act.APP, "500011 50001 70011 28002 700022 700023"),
    _sign_in("app-permissions", Act.APP, "650054 650057 65005"),
    _sign_in("app-permissions", Act.ADMIN, "650056"),
    _sign_in(
        "sign-in-request",
        Act.APP,
        "700054 70005 70007 9002313 900144 90014 90013 90023 90015 901002 28003 50147",
    ),
    # Giving consent
    _sign_in("link-again", Act.OWNER, "54005 501481 50089"),
    _sign_in("link-again", Act.APP, "700005"),
    _sign_in("declined", Act.OWNER, "65004"),
    _sign_in("consent-missing", Act.OWNER, "65001 90008 9002341"),
    _sign_in("admin-consent", Act.ADMIN, "90094 90093"),
    _sign_in("admin-consent-asked", Act.ADMIN, "90095"),
    _sign_in("not-assigned", Act.ADMIN, "50105"),
    # What ends a link
    _sign_in("sessions-revoked", Act.OWNER, "50173"),
    _sign_in("link-expired", Act.OWNER, "70008"),
    _sign_in("link-unused", Act.OWNER, "700082"),
    _sign_in("sign-in-frequency", Act.OWNER, "70043"),
    _sign_in("link-refused", Act.OWNER, "70000 50013"),
    _sign_in("password-changed", Act.OWNER, "50132 50133"),
    _sign_in("password-expired", Act.OWNER, "50055 50144"),
    _sign_in("mfa-needed", Act.OWNER, "50076 50078 50074 50158"),
    _sign_in("mfa-register", Act.OWNER, "50079 50072 53004"),
    # What the organization lets in
    _sign_in("policy-blocks", Act.ADMIN, "53003 50131 53002 53011 530032 530035"),
    _sign_in("device-needed", Act.ADMIN, "53000 53001 530003 50097"),
    _sign_in("tenant-restriction", Act.ADMIN, "500212 500213 50002 1000104"),
    # The account
    _sign_in("wrong-account", Act.OWNER, "50020 500208 16000"),
    _sign_in("account-unknown", Act.OWNER, "50034 51004"),
    _sign_in("account-disabled", Act.ADMIN, "50057"),
    _sign_in("account-locked", Act.OWNER, "50053"),
    _sign_in("sign-in-unfinished", Act.OWNER, "50126 50056 50058 50140 50125"),
    _sign_in("no-mailbox", Act.ADMIN, "650052"),
    # Microsoft's own faults
    _sign_in(
        "sign-in-busy",
        Act.NOBODY,
        "50196 70012 50033 50087 50088 90006 90012 90024 90033 90055 90090 50000",
    ),
)

_OAUTH = (
    _named("app-login-refused", Act.APP, "invalid_client"),
    _named("app-unknown", Act.APP, "unauthorized_client"),
    _named("scope-refused", Act.APP, "invalid_scope invalid_resource"),
    _named(
        "sign-in-request",
        Act.APP,
        "invalid_request unsupported_response_type unsupported_grant_type",
    ),
    _named("link-refused", Act.OWNER, "invalid_grant"),
    _named("declined", Act.OWNER, "access_denied"),
    _named("consent-missing", Act.OWNER, "consent_required"),
    _named("mfa-needed", Act.OWNER, "interaction_required"),
    _named("sign-in-unfinished", Act.OWNER, "login_required"),
    _named("sign-in-busy", Act.NOBODY, "server_error temporarily_unavailable"),
)

_GRAPH = (
    _named("token-refused", Act.OWNER, "InvalidAuthenticationToken unauthenticated"),
    _named("policy-blocks", Act.OWNER, "insufficient_claims"),
    _named("permission-missing", Act.ADMIN, "ErrorAccessDenied accessDenied"),
    _named("app-permissions", Act.ADMIN, "NoPermissionsInAccessToken"),
    _named("mailbox-policy", Act.ADMIN, "extensionError"),
    _named("no-mailbox", Act.ADMIN, "MailboxNotEnabledForRESTAPI ResourceNotFound"),
    _named("account-disabled", Act.ADMIN, "ErrorAccountDisabled"),
    _named("account-suspended", Act.OWNER, "ErrorAccountSuspend"),
    _named("mailbox-unknown", Act.APP, "Request_ResourceNotFound ErrorNonExistentMailbox"),
    # Also seen with two hyphens.
    _named("graph-address", Act.APP, "RequestBroker-ParseUri RequestBroker--ParseUri"),
    _named("send-as-denied", Act.SITE, "ErrorSendAsDenied"),
    _named("recipients-invalid", Act.SITE, "ErrorInvalidRecipients ErrorMissingRecipients"),
    _named(
        "mail-too-large",
        Act.SITE,
        "ErrorMessageSizeExceeded ErrorAttachmentSizeLimitExceeded RequestBodyTooLarge",
    ),
    _named(
        "mail-unreadable",
        Act.SITE,
        "ErrorMimeContentInvalidBase64String ErrorMimeContentInvalid ErrorUnsupportedMimeConversion"
        " InvalidInternetMessageHeader InvalidInternetMessageHeaderCollection",
    ),
    _named("malware", Act.SITE, "malwareDetected"),
    _named(
        "graph-request",
        Act.SITE,
        "BadRequest RequestBodyRead invalidRequest ErrorInvalidIdMalformed"
        " ErrorAttachmentSizeShouldNotBeLessThanMinimumSize ErrorItemNotFound itemNotFound",
    ),
    # Once there is space again the same mail goes through, so it waits.
    _named(
        "mailbox-full", Act.OWNER, "ErrorQuotaExceeded quotaLimitReached", FailureKind.TRANSIENT
    ),
    _named(
        "daily-limit",
        Act.NOBODY,
        "ErrorSubmissionQuotaExceeded ErrorExceededMessageLimit RefuseQuota",
    ),
    _named(
        "throttled",
        Act.NOBODY,
        "ApplicationThrottled MailboxConcurrency TooManyRequests activityLimitReached"
        " throttledRequest ErrorExceededConnectionCount ErrorServerBusy",
    ),
    _named(
        "mailbox-moving",
        Act.NOBODY,
        "ErrorMailboxMoveInProgress ErrorMailboxStoreUnavailable ErrorMailboxFailover"
        " MailboxStoreUnavailable MdbReplication",
    ),
    _named(
        "graph-busy",
        Act.NOBODY,
        "serviceNotAvailable ErrorIrresolvableConflict invalidRange uploadSessionNotFound"
        " resyncRequired syncStateNotFound",
    ),
    _named(
        "answer-unclear",
        Act.NOBODY,
        "ErrorInternalServerTransientError ErrorInternalServerError ErrorTimeoutExpired"
        " ErrorConnectionFailed UnknownError generalException",
    ),
)


def _status(about: str, who: Act, *statuses: int, kind: FailureKind | None = None) -> _Group:
    codes = tuple(f"HTTP {status}" for status in statuses)
    return _Group(about=about, who=who, codes=codes, kind=kind)


_HTTP = (
    _status("token-refused", Act.OWNER, 401),
    _status("permission-missing", Act.ADMIN, 403),
    _status("graph-request", Act.SITE, 404),
    _status("mail-too-large", Act.SITE, 413),
    _status("mailbox-full", Act.OWNER, 507, kind=FailureKind.TRANSIENT),
    _status("throttled", Act.NOBODY, 429, 509),
    _status("graph-busy", Act.NOBODY, 503),
    _status("answer-unclear", Act.NOBODY, 500, 504),
)

_BOUNCES = (_Group(about="tenant-limit", who=Act.ADMIN, codes=("550 5.7.233",)),)


def _codes(*groups: tuple[_Group, ...]) -> Iterator[tuple[str, Code]]:
    for group in (group for part in groups for group in part):
        code = Code(kind=group.kind or _KINDS[group.who], about=group.about, who=group.who)
        yield from ((name, code) for name in group.codes)


CODES: Mapping[str, Code] = dict(_codes(_SIGN_IN, _OAUTH, _GRAPH, _HTTP, _BOUNCES))
"""Every code in Microsoft's own spelling; a bare HTTP status reads `HTTP 403`."""

OAUTH_NAMES = frozenset(name for name, _code in _codes(_OAUTH))
"""The names that OAuth gives; an AADSTS number beside one says more."""

# Microsoft's pages do not agree on capitals (`accessDenied`, `AccessDenied`).
_BY_FOLDED = {name.casefold(): code for name, code in CODES.items()}


def look_up(code: str) -> Code | None:
    """What is known of a code, however it is capitalized."""
    return _BY_FOLDED.get(code.casefold())


def is_known(code: str) -> bool:
    """Whether a code says something; of nested errors the innermost known one counts."""
    return look_up(code) is not None


def find_code(text: str) -> str:
    """The AADSTS number in Microsoft's words, or an empty string."""
    found = _AADSTS.search(text)
    return found[0].upper() if found else ""


# --- the sign-in service -----------------------------------------------------------------------

_SUBERRORS = {
    "additional_action",
    "bad_token",
    "basic_action",
    "consent_required",
    "message_only",
    "token_expired",
    "user_password_expired",
}
"""All of them ask for the person; whatever the error is called."""


def kind_of_token_error(error: str, codes: Sequence[int | str], suberror: str) -> FailureKind:
    """What a refusal by the token endpoint means: a known AADSTS number first, then the name.

    Whatever is unknown is a matter of settings: asking again, or another sign-in, would not help.
    """
    numbers = (str(code).upper().removeprefix("AADSTS") for code in codes)
    for name in (*(f"AADSTS{number}" for number in numbers), error):
        if (code := look_up(name)) is not None:
            return code.kind
    if suberror.casefold() in _SUBERRORS:
        return FailureKind.NEEDS_REAUTHORISATION
    return FailureKind.MISCONFIGURED


# --- Graph -------------------------------------------------------------------------------------

_CAUSES = {
    "send-as-denied": Cause.SENDER_REFUSED,
    "recipients-invalid": Cause.RECIPIENT_REFUSED,
    "mail-too-large": Cause.TOO_LARGE,
    "mail-unreadable": Cause.CONTENT_REFUSED,
    "malware": Cause.CONTENT_REFUSED,
    "daily-limit": Cause.RATE,
    "throttled": Cause.RATE,
}
# Codes that come with any status: there the status says more (Graph answers 401 `UnknownError`).
_VAGUE = {"answer-unclear", "graph-busy", "graph-request"}
_NOT_SENT_FOR_SURE = {"daily-limit", "mailbox-full", "mailbox-moving"}

_Verdict = tuple[FailureKind, Cause]
_LOST: _Verdict = (FailureKind.UNCERTAIN, Cause.LOST_ANSWER)
_SLOW_DOWN: _Verdict = (FailureKind.TRANSIENT, Cause.RATE)


def kind_of_graph_error(status: int, code: str, has_graph_body: bool) -> tuple[FailureKind, Cause]:
    """What an answer other than 202 to the sending of a mail means.

    A mail that may have gone out is never called anything but uncertain: a 5xx hides a success at
    times, and so does a 2xx that is not 202.
    """
    if 200 <= status < 300:
        return _LOST
    if status in (429, 509) or (status == 503 and has_graph_body):
        return _SLOW_DOWN
    known = look_up(code)
    if known is None and _names_a_limit(code):
        return _SLOW_DOWN
    if known is not None and known.about not in _VAGUE and (status < 500 or _was_refused(known)):
        return _verdict(known)
    if status >= 500 and status != 507:
        return _LOST
    return _by_status(status, known)


def _names_a_limit(code: str) -> bool:
    """Not every limit's code is written down anywhere; all of them ask for time."""
    return any(word in code.casefold() for word in ("limit", "quota"))


def _was_refused(code: Code) -> bool:
    """Whether the code alone rules out that the mail went out."""
    return code.kind is not FailureKind.TRANSIENT or code.about in _NOT_SENT_FOR_SURE


def _verdict(code: Code) -> _Verdict:
    if code.kind is FailureKind.NEEDS_REAUTHORISATION:
        return code.kind, Cause.AUTH
    return code.kind, _CAUSES.get(code.about, Cause.UNKNOWN)


def _by_status(status: int, vague: Code | None) -> _Verdict:
    if status in (401, 403, 413, 507):
        return _verdict(CODES[f"HTTP {status}"])
    if vague is not None:
        return _verdict(vague)
    if status == 408:  # the request did not arrive whole, so nothing was sent
        return FailureKind.TRANSIENT, Cause.TIMEOUT
    if status < 400:  # a redirect: something between us and Microsoft answered
        return FailureKind.TRANSIENT, Cause.PROTOCOL
    return FailureKind.PERMANENT, Cause.UNKNOWN
