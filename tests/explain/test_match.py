import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.explain.match import (
    LINK_NO_CODE,
    LINK_OTHER_ACCOUNT,
    LINK_SCOPE_MISSING,
    LINK_STATE,
    explain,
    explain_link,
)
from webapp.explain.texts import EXPLANATIONS
from webapp.mailers.errors import Cause
from webapp.microsoft.codes import CODES

# What Microsoft says, as attempts keep it: code, words, and which explanation belongs to it.
SAID_BY_MICROSOFT = [
    (
        "AADSTS900382",
        "AADSTS900382: Confidential Client is not supported in Cross Cloud request.",
        "wrong-cloud",
    ),
    ("", "Confidential Client is not supported in Cross Cloud request.", "wrong-cloud"),
    ("invalid_request", "AADSTS900432: Confidential Client is not supported.", "wrong-cloud"),
    ("403 ErrorSendAsDenied", "The user account … does not have the right", "send-as-denied"),
    ("403", "ErrorSendAsDenied: The user account which was used", "send-as-denied"),
    ("403 ErrorAccessDenied", "Access is denied. Check credentials", "permission-missing"),
    ("403", "Forbidden", "permission-missing"),
    ("403 ErrorAccessDenied", "Access to OData is disabled.", "mailbox-policy"),
    ("401 InvalidAuthenticationToken", "Access token is empty.", "token-refused"),
    ("401", "", "token-refused"),
    ("401 UnknownError", "", "token-refused"),
    ("", "CompactToken parsing failed with error code: 80049217", "token-refused"),
    ("", "IDX14100: JWT is not well formed, there are no dots (.)", "token-refused"),
    ("", "Lifetime validation failed, the token is expired.", "token-refused"),
    ("AADSTS700082", "The refresh token has expired due to inactivity.", "link-unused"),
    ("AADSTS50173", "The provided grant has expired due to it being revoked", "sessions-revoked"),
    ("AADSTS70000", "The request was denied; the grant was revoked.", "sessions-revoked"),
    ("AADSTS70000", "The provided value for the input is not valid.", "link-refused"),
    ("invalid_grant", "", "link-refused"),
    ("invalid_grant", "AADSTS50173: The provided grant has expired", "sessions-revoked"),
    ("AADSTS70008", "The provided authorization code or refresh token expired", "link-expired"),
    ("AADSTS50076", "you must use multi-factor authentication", "mfa-needed"),
    ("AADSTS50079", "you must enroll in multi-factor authentication", "mfa-register"),
    ("AADSTS50078", "Presented multi-factor authentication has expired", "mfa-needed"),
    ("AADSTS53000", "Device is not in required device state", "device-needed"),
    ("AADSTS53003", "Access has been blocked by Conditional Access", "policy-blocks"),
    ("AADSTS7000222", "The provided client secret keys are expired.", "secret-expired"),
    ("invalid_client", "AADSTS7000222: The provided client secret keys", "secret-expired"),
    ("AADSTS7000215", "Invalid client secret provided.", "secret-wrong"),
    ("AADSTS700016", "Application was not found in the directory", "app-unknown"),
    ("AADSTS90002", "Tenant not found.", "tenant-unknown"),
    ("AADSTS900023", "Specified tenant identifier is neither a valid DNS name", "tenant-unknown"),
    ("AADSTS50194", "Application is not configured as a multi-tenant", "single-tenant"),
    ("AADSTS50020", "User account does not exist in tenant", "wrong-account"),
    ("unauthorized_client", "The client is not enabled for consumers.", "personal-account"),
    ("", "The client application is not enabled for consumers.", "personal-account"),
    ("unauthorized_client", "The client does not exist", "app-unknown"),
    ("AADSTS50011", "The redirect URI does not match", "redirect-address"),
    ("AADSTS500116", "The reply address is not valid", "redirect-address"),
    ("", "URL may not contain a query string", "redirect-address"),
    ("AADSTS9002325", "Proof Key for Code Exchange is required", "platform-not-web"),
    ("", "Proof Key for Code Exchange is required for cross-origin", "platform-not-web"),
    ("AADSTS65004", "User declined to consent to access the app.", "declined"),
    ("access_denied", "the user canceled the authentication", "declined"),
    ("AADSTS65001", "The user or administrator has not consented", "consent-missing"),
    ("AADSTS90094", "An administrator is required to consent.", "admin-consent"),
    ("", "Need admin approval", "admin-consent"),
    ("AADSTS65001", "the app is unverified", "unverified-publisher"),
    ("", "This app is risky, its publisher is unverified", "unverified-publisher"),
    ("AADSTS50105", "The signed in user is not assigned to a role", "not-assigned"),
    ("AADSTS50057", "The user account is disabled.", "account-disabled"),
    ("AADSTS50034", "The user account does not exist in the directory", "account-unknown"),
    ("", "the ability of creating apps outside a directory is deprecated", "azure-directory"),
    ("404 MailboxNotEnabledForRESTAPI", "The mailbox is either inactive", "no-mailbox"),
    ("404 ResourceNotFound", "Resource could not be discovered.", "no-mailbox"),
    ("400 ErrorInvalidRecipients", "At least one recipient is not valid", "recipients-invalid"),
    ("413", "Request Entity Too Large", "mail-too-large"),
    ("413 RequestBodyTooLarge", "", "mail-too-large"),
    ("400 ErrorMessageSizeExceeded", "exceeds the maximum supported size", "mail-too-large"),
    ("400 BadRequest", "The maximum request length supported is 4MB.", "mail-too-large"),
    ("400 BadRequest", "Unable to read JSON request payload", "graph-request"),
    ("429 ApplicationThrottled", "over its MailboxConcurrency limit", "throttled"),
    ("", "Application is over its MailboxConcurrency limit.", "throttled"),
    ("503", "Service Unavailable", "graph-busy"),
    ("504", "Gateway Timeout", "answer-unclear"),
    ("504 UnknownError", "", "answer-unclear"),
    ("503 UnknownError", "", "graph-busy"),
    ("", "MailboxStoreUnavailable: the store is not available", "mailbox-moving"),
    ("503 MdbReplication", "", "mailbox-moving"),
    ("ErrorSubmissionQuotaExceeded", "", "daily-limit"),
    ("ErrorExceededMessageLimit", "", "daily-limit"),
    ("RefuseQuota", "", "daily-limit"),
    ("403 ErrorAccountSuspend", "", "account-suspended"),
    ("403", "Account suspended. Follow the instructions in your Inbox", "account-suspended"),
    ("403 ErrorQuotaExceeded", "The mailbox has exceeded its limit", "mailbox-full"),
    ("550 5.7.233", "Your message can't be sent because your tenant exceeded", "tenant-limit"),
    ("554 5.2.252", "SendAsDenied; a@b.example not allowed to send as", "send-as-denied"),
    ("AADSTS999999", "invalid_grant: something new", "link-refused"),
    ("400 ErrorOfTomorrow", "Something new", "microsoft-unknown"),
]

SAID_BY_GOOGLE = [
    ("invalid_grant", "Token has been expired or revoked.", "google-link-ended"),
    ("invalid_grant", "Account has been deleted", "google-account-gone"),
    ("invalid_grant", "reauth related error (invalid_rapt) invalid_rapt", "google-session-policy"),
    ("invalid_rapt", "reauth related error", "google-session-policy"),
    ("invalid_client", "The provided client secret is invalid.", "google-app-refused"),
    ("scopes-changed", "Google renewed the link without permission", "google-permission"),
    ("403 accessNotConfigured", "Gmail API has not been used in project 1", "google-api-off"),
    ("403 SERVICE_DISABLED", "", "google-api-off"),
    ("403 insufficientPermissions", "insufficient authentication scopes.", "google-permission"),
    ("403 domainPolicy", "The domain administrators have disabled", "google-domain-policy"),
    ("403 userRateLimitExceeded", "User Rate Limit Exceeded", "google-slow"),
    ("429 rateLimitExceeded", "Too many concurrent requests for user", "google-slow"),
    ("429", "", "google-slow"),
    ("400 failedPrecondition", "Mail service not enabled", "google-no-mailbox"),
    ("400 failedPrecondition", "Precondition check failed.", "google-no-mailbox"),
    ("400 invalidArgument", "Recipient address required", "google-recipients"),
    ("400 invalidArgument", "'raw' RFC822 payload message is invalid", "google-request"),
    ("401 authError", "Invalid Credentials", "google-token-refused"),
    ("413", "", "google-too-large"),
    ("503 backendError", "The service is currently unavailable.", "google-busy"),
    ("504", "", "google-unclear"),
    ("418 ofTomorrow", "Something new", "google-unknown"),
]

SAID_BY_SERVERS = [
    ("535 5.7.139", "Authentication unsuccessful", "smtp-password-blocked"),
    ("535", "5.7.139 Authentication unsuccessful", "smtp-password-blocked"),
    ("535", "SmtpClientAuthentication is disabled for the Tenant", "smtp-password-blocked"),
    ("535", "locked by your organization's security defaults policy", "smtp-password-blocked"),
    ("550 5.7.30", "Basic authentication is not supported", "smtp-password-retired"),
    ("550 5.7.60", "SMTP; Client does not have permissions", "smtp-send-as-denied"),
    ("554 5.2.252", "SendAsDenied; a@b.example not allowed", "smtp-send-as-denied"),
    ("550 5.7.705", "Access denied, tenant has exceeded threshold", "outbound-blocked"),
    ("550 5.7.708", "Access denied, traffic not accepted from this IP", "outbound-blocked"),
    ("550 5.1.8", "Access denied, bad outbound sender", "outbound-blocked"),
    ("535 5.7.8", "SMTP Error: Could not authenticate.", "login-refused"),
    ("550", "We do not authorize the use of it to transport unsolicited mail", "bulk-refused"),
    ("550", "Unauthenticated senders not allowed", "login-needed"),
    ("", "[SSL: CERTIFICATE_VERIFY_FAILED] unable to get issuer", "certificate-not-trusted"),
    ("", "SMTP connect() failed.", "no-connection"),
    ("550 5.1.1", "who is that", "unknown"),
]


@pytest.mark.parametrize(("code", "words", "key"), SAID_BY_MICROSOFT)
def test_what_microsoft_says_is_explained(code: str, words: str, key: str) -> None:
    assert explain(mailer="outlook", code=code, words=words).key == key


@pytest.mark.parametrize(("code", "words", "key"), SAID_BY_GOOGLE)
def test_what_google_says_is_explained(code: str, words: str, key: str) -> None:
    assert explain(mailer="gmail", code=code, words=words).key == key


@pytest.mark.parametrize(
    ("error", "description", "key"),
    [
        ("access_denied", "", "google-declined"),
        ("admin_policy_enforced", "", "google-domain-policy"),
        ("invalid_client", "The OAuth client was not found.", "google-app-refused"),
        ("invalid_grant", "Malformed auth code.", "google-link-again"),
        (LINK_STATE, "", "google-link-state"),
        (LINK_SCOPE_MISSING, "", "google-permission"),
        ("", "", "google-link-incomplete"),
    ],
)
def test_a_link_at_google_that_failed_is_explained(error: str, description: str, key: str) -> None:
    assert explain_link(error, description, "gmail").key == key


@pytest.mark.parametrize(("code", "words", "key"), SAID_BY_SERVERS)
def test_what_a_mail_server_says_is_explained(code: str, words: str, key: str) -> None:
    assert explain(mailer="smtp", code=code, words=words).key == key


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_of_microsofts_leads_to_its_explanation(code: str) -> None:
    found = explain(mailer="outlook", code=code.removeprefix("HTTP "), words="")
    assert found.key == CODES[code].about


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause])
def test_every_cause_is_explained(cause: Cause) -> None:
    for mailer in ("outlook", "gmail", "smtp", "another"):
        found = explain(mailer=mailer, code="", words="", cause=cause)
        assert found.key not in {"unknown", "microsoft-unknown", "google-unknown"}


def test_a_cause_at_microsoft_is_told_otherwise_than_at_a_server() -> None:
    def key(mailer: str) -> str:
        return explain(mailer=mailer, code="", words="", cause="connect").key

    assert (key("outlook"), key("smtp")) == ("microsoft-unreachable", "no-connection")


def test_the_code_counts_before_the_words_and_the_words_before_the_cause() -> None:
    words = "certificate verify failed"
    assert explain(mailer="outlook", code="AADSTS50057", words=words).key == "account-disabled"
    assert explain(mailer="outlook", code="", words=words, cause="auth").key == "microsoft-tls"


def test_a_status_of_its_own_counts_like_one_in_the_code() -> None:
    assert explain(mailer="outlook", code="", words="", status=413).key == "mail-too-large"


def test_a_mail_that_may_have_gone_out_is_never_told_to_be_tried_again() -> None:
    for code in ("503", "503 serviceNotAvailable", "500 ErrorServerBusy", "502"):
        found = explain(mailer="outlook", code=code, words="", cause="lost-answer")
        assert found.key == "answer-unclear"
        found = explain(mailer="gmail", code=code, words="", cause="lost-answer")
        assert found.key == "google-unclear"
    assert explain(mailer="smtp", code="", words="", cause="owner-lost").key == "answer-lost"


def test_microsofts_codes_mean_nothing_at_another_server() -> None:
    words = "ErrorAccessDenied AADSTS50173"
    assert explain(mailer="smtp", code="403 ErrorAccessDenied", words=words).key == "unknown"


@pytest.mark.parametrize(
    ("error", "description", "key"),
    [
        ("access_denied", "The user has denied access", "declined"),
        ("access_denied", "AADSTS65004: User declined to consent", "declined"),
        ("access_denied", "AADSTS90094: The grant requires admin permission", "admin-consent"),
        ("access_denied", "Need admin approval", "admin-consent"),
        ("consent_required", "AADSTS65001: has not consented", "consent-missing"),
        ("server_error", "", "sign-in-busy"),
        ("invalid_client", "AADSTS7000215: Invalid client secret provided", "secret-wrong"),
        ("", "AADSTS50011: The redirect URI does not match", "redirect-address"),
        (LINK_STATE, "", "link-state"),
        ("mismatching_state", "CSRF Warning!", "link-state"),
        (LINK_NO_CODE, "", "link-incomplete"),
        ("", "", "link-incomplete"),
        (LINK_SCOPE_MISSING, "", "permissions-changed"),
        (LINK_OTHER_ACCOUNT, "", "wrong-account"),
        ("error_of_tomorrow", "Something new", "microsoft-unknown"),
    ],
)
def test_a_link_that_failed_is_explained(error: str, description: str, key: str) -> None:
    assert explain_link(error, description).key == key


_any_words = st.text() | st.lists(
    st.sampled_from([*sorted(CODES), "revoked", "SendAsDenied", "5.7.60", ":", "consumers"])
).map(" ".join)


@given(
    mailer=st.sampled_from(["outlook", "gmail", "smtp", ""]) | st.text(),
    code=_any_words,
    words=_any_words,
    cause=st.sampled_from([*Cause, "owner-lost"]) | st.text(),
    status=st.none() | st.integers(),
)
def test_everything_has_an_explanation(
    mailer: str, code: str, words: str, cause: str, status: int | None
) -> None:
    found = explain(mailer=mailer, code=code, words=words, cause=cause, status=status)
    assert EXPLANATIONS[found.key] is found


@given(_any_words, _any_words)
def test_every_failed_link_has_an_explanation(error: str, description: str) -> None:
    assert explain_link(error, description).key in EXPLANATIONS
