from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.mailers.errors import Cause, FailureKind
from webapp.microsoft.codes import (
    CODES,
    OAUTH_NAMES,
    Act,
    find_code,
    is_known,
    kind_of_graph_error,
    kind_of_token_error,
    look_up,
)

TRANSIENT = FailureKind.TRANSIENT
UNCERTAIN = FailureKind.UNCERTAIN
PERMANENT = FailureKind.PERMANENT
REAUTHORISE = FailureKind.NEEDS_REAUTHORISATION
MISCONFIGURED = FailureKind.MISCONFIGURED


def test_the_catalogue_is_whole() -> None:
    families = Counter(
        "aadsts"
        if code.startswith("AADSTS")
        else "http"
        if code.startswith("HTTP ")
        else "oauth"
        if code in OAUTH_NAMES
        else "graph"
        for code in CODES
    )
    assert families == {"aadsts": 126, "oauth": 14, "graph": 64, "http": 10}
    assert len({code.casefold() for code in CODES}) == len(CODES)


def test_only_a_full_mailbox_waits_although_somebody_must_act() -> None:
    kinds = {
        Act.OWNER: REAUTHORISE,
        Act.ADMIN: REAUTHORISE,
        Act.APP: MISCONFIGURED,
        Act.SITE: PERMANENT,
        Act.NOBODY: TRANSIENT,
    }
    others = {name for name, code in CODES.items() if code.kind is not kinds[code.who]}
    assert others == {"ErrorQuotaExceeded", "quotaLimitReached", "HTTP 507"}


def test_codes_are_known_however_they_are_capitalized() -> None:
    assert look_up("AccessDenied") is look_up("accessDenied") is CODES["accessDenied"]
    assert is_known("errorsendasdenied")
    assert not is_known("ErrorOfTomorrow")
    assert not is_known("")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("AADSTS50173: The provided grant has expired due to it being revoked.", "AADSTS50173"),
        ("invalid_client: aadsts7000215: Invalid client secret provided.", "AADSTS7000215"),
        ("AADSTS is the prefix of all of them", ""),
        ("Error 50173", ""),
        ("", ""),
    ],
)
def test_the_number_is_found_in_microsofts_words(text: str, code: str) -> None:
    assert find_code(text) == code


@pytest.mark.parametrize(
    ("error", "codes", "suberror", "kind"),
    [
        ("invalid_grant", [50173], "", REAUTHORISE),
        ("invalid_grant", ["AADSTS700082"], "token_expired", REAUTHORISE),
        ("invalid_grant", [700084], "", MISCONFIGURED),  # registered as a single-page app
        ("invalid_grant", [53003], "", REAUTHORISE),
        ("invalid_grant", [], "", REAUTHORISE),
        ("invalid_grant", [999999], "bad_token", REAUTHORISE),
        ("interaction_required", [50076], "basic_action", REAUTHORISE),
        ("consent_required", [65001], "", REAUTHORISE),
        ("invalid_client", [7000222], "", MISCONFIGURED),
        ("invalid_client", ["7000215"], "", MISCONFIGURED),
        ("invalid_client", [], "", MISCONFIGURED),
        ("unauthorized_client", [700016], "", MISCONFIGURED),
        ("invalid_request", [900382], "", MISCONFIGURED),
        ("temporarily_unavailable", [], "", TRANSIENT),
        ("invalid_request", [90033], "", TRANSIENT),
        ("server_error", [], "", TRANSIENT),
        ("error_of_tomorrow", [], "consent_required", REAUTHORISE),
        ("error_of_tomorrow", [1], "", MISCONFIGURED),
        ("", [], "", MISCONFIGURED),
    ],
)
def test_a_refused_token_is_of_one_kind(
    error: str, codes: list[int | str], suberror: str, kind: FailureKind
) -> None:
    assert kind_of_token_error(error, codes, suberror) is kind


@pytest.mark.parametrize(
    ("status", "code", "body", "kind", "cause"),
    [
        (429, "ApplicationThrottled", True, TRANSIENT, Cause.RATE),
        (429, "", False, TRANSIENT, Cause.RATE),
        (509, "", False, TRANSIENT, Cause.RATE),
        (503, "ErrorServerBusy", True, TRANSIENT, Cause.RATE),
        (503, "", False, UNCERTAIN, Cause.LOST_ANSWER),
        (500, "", False, UNCERTAIN, Cause.LOST_ANSWER),
        (500, "ErrorInternalServerError", True, UNCERTAIN, Cause.LOST_ANSWER),
        (500, "BadRequest", True, UNCERTAIN, Cause.LOST_ANSWER),
        (502, "", False, UNCERTAIN, Cause.LOST_ANSWER),
        (504, "UnknownError", True, UNCERTAIN, Cause.LOST_ANSWER),
        (500, "ErrorServerBusy", True, UNCERTAIN, Cause.LOST_ANSWER),
        (500, "ErrorSendAsDenied", True, PERMANENT, Cause.SENDER_REFUSED),
        (500, "ErrorMailboxMoveInProgress", True, TRANSIENT, Cause.UNKNOWN),
        (404, "MailboxStoreUnavailable", True, TRANSIENT, Cause.UNKNOWN),
        (200, "", False, UNCERTAIN, Cause.LOST_ANSWER),
        (204, "", False, UNCERTAIN, Cause.LOST_ANSWER),
        (403, "ErrorSubmissionQuotaExceeded", True, TRANSIENT, Cause.RATE),
        (400, "ErrorExceededMessageLimit", True, TRANSIENT, Cause.RATE),
        (500, "RefuseQuota", True, TRANSIENT, Cause.RATE),
        (400, "ErrorSomeNewLimitReached", True, TRANSIENT, Cause.RATE),
        (403, "QuotaOfTomorrow", True, TRANSIENT, Cause.RATE),
        (403, "ErrorQuotaExceeded", True, TRANSIENT, Cause.UNKNOWN),
        (400, "quotaLimitReached", True, TRANSIENT, Cause.UNKNOWN),
        (507, "", False, TRANSIENT, Cause.UNKNOWN),
        (403, "ErrorSendAsDenied", True, PERMANENT, Cause.SENDER_REFUSED),
        (400, "ErrorInvalidRecipients", True, PERMANENT, Cause.RECIPIENT_REFUSED),
        (400, "ErrorMissingRecipients", True, PERMANENT, Cause.RECIPIENT_REFUSED),
        (413, "", False, PERMANENT, Cause.TOO_LARGE),
        (413, "BadRequest", True, PERMANENT, Cause.TOO_LARGE),
        (400, "ErrorMessageSizeExceeded", True, PERMANENT, Cause.TOO_LARGE),
        (400, "ErrorAttachmentSizeLimitExceeded", True, PERMANENT, Cause.TOO_LARGE),
        (400, "ErrorMimeContentInvalidBase64String", True, PERMANENT, Cause.CONTENT_REFUSED),
        (400, "InvalidInternetMessageHeader", True, PERMANENT, Cause.CONTENT_REFUSED),
        (400, "malwareDetected", True, PERMANENT, Cause.CONTENT_REFUSED),
        (401, "InvalidAuthenticationToken", True, REAUTHORISE, Cause.AUTH),
        (401, "UnknownError", True, REAUTHORISE, Cause.AUTH),
        (401, "", False, REAUTHORISE, Cause.AUTH),
        (403, "ErrorAccessDenied", True, REAUTHORISE, Cause.AUTH),
        (403, "UnknownError", True, REAUTHORISE, Cause.AUTH),
        (403, "", False, REAUTHORISE, Cause.AUTH),
        (404, "MailboxNotEnabledForRESTAPI", True, REAUTHORISE, Cause.AUTH),
        (404, "ResourceNotFound", True, REAUTHORISE, Cause.AUTH),
        (403, "ErrorAccountDisabled", True, REAUTHORISE, Cause.AUTH),
        (403, "ErrorAccountSuspend", True, REAUTHORISE, Cause.AUTH),
        (400, "RequestBroker--ParseUri", True, MISCONFIGURED, Cause.UNKNOWN),
        (404, "Request_ResourceNotFound", True, MISCONFIGURED, Cause.UNKNOWN),
        (400, "UnknownError", True, TRANSIENT, Cause.UNKNOWN),
        (400, "BadRequest", True, PERMANENT, Cause.UNKNOWN),
        (404, "", False, PERMANENT, Cause.UNKNOWN),
        (422, "ErrorOfTomorrow", True, PERMANENT, Cause.UNKNOWN),
        (422, "", False, PERMANENT, Cause.UNKNOWN),
        (408, "", False, TRANSIENT, Cause.TIMEOUT),
        (302, "", False, TRANSIENT, Cause.PROTOCOL),
    ],
)
def test_a_refused_mail_is_of_one_kind(
    status: int, code: str, body: bool, kind: FailureKind, cause: Cause
) -> None:
    assert kind_of_graph_error(status, code, body) == (kind, cause)


_some_code = st.sampled_from(sorted(CODES)) | st.text(max_size=20)


@given(st.integers(), _some_code, st.booleans())
def test_every_answer_to_a_mail_has_a_kind(status: int, code: str, body: bool) -> None:
    kind, cause = kind_of_graph_error(status, code, body)
    assert isinstance(kind, FailureKind)
    assert (kind is UNCERTAIN) is (cause is Cause.LOST_ANSWER)


@given(_some_code, st.lists(st.integers() | _some_code), st.text(max_size=20))
def test_every_refused_token_has_a_kind(error: str, codes: list[int | str], suberror: str) -> None:
    assert isinstance(kind_of_token_error(error, codes, suberror), FailureKind)
