"""What goes wrong between a registration, an account and a link at Google, and with Gmail."""

from collections.abc import Iterator, Mapping

from webapp.explain.model import Action, Explanation, Step
from webapp.explain.parts import (
    AS_THE_SITE_WISHES,
    AUTHORIZE,
    CORRECT_RECIPIENTS,
    GOOGLE_APP,
    LINK_AGAIN,
    OTHER_MAILER,
    RETRIES,
    TEST,
    WAIT,
    at_google,
)
from webapp.fields import N_
from webapp.mailers.errors import Cause

SIGN_IN = at_google(you=N_("can put it right now: sign in once more."))
SITE = at_google(you=N_("can put it right at the site or program that wrote the mail."))
GOES_ON = at_google(google=N_("has to recover; until then the mail waits here."))

NEW_SECRET = Step(
    N_(
        "Open Google Cloud console › Google Auth Platform › Clients › %(app_name)s, and compare "
        "the Client ID. If in doubt, add a secret there."
    ),
    Action.OPEN_APP,
)
PASTE_SECRET = Step(
    N_("Paste Client ID and Client Secret, and save. Signing in again is not needed."),
    Action.OPEN_CONNECTION,
)
STATUS_PAGE = Step(N_("If it lasts, look at www.google.com/appsstatus."))

HELLO_TRUST = N_(
    "Hello, our site sends its mail through Gmail as %(account)s, with the app %(app_name)s "
    "(Client ID: %(client_id)s). Our organization does not let it. Google Admin console › Security "
    "› Access and data control › API controls › Manage app access has to trust this Client ID for "
    "sending (gmail.send) and for reading the addresses of the account (gmail.settings.basic)."
)
HELLO_SESSION = N_(
    "Hello, our site sends its mail through Gmail as %(account)s, with the app %(app_name)s "
    "(Client ID: %(client_id)s). A server renews the sign-in, so nobody is there to sign in again. "
    "Google Admin console › Security › Access and data control › Google Cloud session control asks "
    "for that; exempting trusted apps there, and trusting this Client ID under API controls, lets "
    "the mail through."
)
HELLO_GMAIL = N_(
    "Hello, our site is to send mail through Gmail as %(account)s, but Gmail is not switched on "
    "for this account. Google Admin console › Apps › Google Workspace › Gmail shows for whom it is "
    "on; Directory › Users › %(account)s shows whether the account has a license."
)


def links() -> Iterator[Explanation]:
    """What ends a link, or keeps one from being made."""
    yield Explanation(
        key="google-link-ended",
        title=N_("Google has ended the link"),
        cause=N_(
            "Access was withdrawn in the account of %(account)s, its password was changed, or the "
            "link was made while the consent screen was in Testing: such a link lasts seven days."
        ),
        who=at_google(
            you=N_("can put it right now: sign in once more."),
            operator=N_("can publish the consent screen, if the link ends every week."),
        ),
        steps=(
            AUTHORIZE,
            Step(
                N_(
                    "If it ends every week: Google Cloud console › Google Auth Platform › Audience "
                    "› Publish app. Then authorize once more."
                ),
                Action.OPEN_APP,
            ),
        ),
    )
    yield Explanation(
        key="google-account-gone",
        title=N_("Google says that the account is gone or disabled"),
        cause=N_("The account %(account)s was deleted, suspended or disabled at Google."),
        who=at_google(
            you=N_("can sign in at Google and follow what it says, or link another account."),
            admin=N_("can restore the account."),
        ),
        steps=(
            Step(N_("Sign in at accounts.google.com as %(account)s, and follow what it says.")),
            Step(
                N_(
                    "In an organization the admin looks under Google Admin console › Directory › "
                    "Users; deleted accounts can be restored for 20 days."
                )
            ),
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="google-session-policy",
        title=N_("Your organization asks to sign in again"),
        cause=N_(
            "A rule of the organization ends sign-ins after some hours, also those of a server "
            "that renews its own."
        ),
        who=at_google(
            you=N_("can sign in again, which helps for some hours."),
            admin=N_("can put it right for good: exempt trusted apps from the rule."),
        ),
        steps=(
            AUTHORIZE,
            Step(N_("Copy the text for the admin and send it."), Action.COPY_ADMIN_MESSAGE),
        ),
        admin_message=HELLO_SESSION,
    )
    yield Explanation(
        key="google-permission",
        title=N_("Permission to send is missing"),
        cause=N_(
            "Google asks for each permission with a box of its own, and the one to send mail was "
            "not ticked for %(account)s."
        ),
        who=at_google(you=N_("can put it right: authorize again and tick every box.")),
        steps=(AUTHORIZE, TEST),
    )
    yield Explanation(
        key="google-token-refused",
        title=N_("Google does not accept the sign-in of this connection"),
        cause=N_("The token was refused although it was renewed. Nothing was sent."),
        who=SIGN_IN,
        steps=(AUTHORIZE, TEST),
    )
    yield Explanation(
        key="google-declined",
        title=N_("Google’s question was answered with no"),
        cause=N_(
            "Somebody pressed Cancel, or the account is not among the test users of an app whose "
            "consent screen is in Testing."
        ),
        who=at_google(
            you=N_("can start again and accept."),
            operator=N_("can publish the consent screen, or add the account as a test user."),
        ),
        steps=(
            LINK_AGAIN,
            Step(
                N_(
                    "If Google says that the app is being tested: Google Cloud console › Google "
                    "Auth Platform › Audience › Publish app."
                ),
                Action.OPEN_APP,
            ),
        ),
    )
    yield Explanation(
        key="google-domain-policy",
        title=N_("Your organization does not let this app use Gmail"),
        cause=N_("A rule for apps in Google Workspace refuses this one, or Gmail in all of them."),
        who=at_google(
            you=N_("can send the text below to your admin; signing in again does not change it."),
            admin=N_("can put it right: the rule is set by your organization."),
        ),
        steps=(
            Step(N_("Copy the text for the admin and send it."), Action.COPY_ADMIN_MESSAGE),
            Step(
                N_(
                    "The admin opens Google Admin console › Security › Access and data control › "
                    "API controls › Manage app access, and trusts the Client ID."
                )
            ),
            AUTHORIZE,
        ),
        admin_message=HELLO_TRUST,
    )
    yield Explanation(
        key="google-no-mailbox",
        title=N_("The account has no Gmail"),
        cause=N_(
            "Google knows %(account)s, but Gmail is switched off for it, has no license, or was "
            "never set up."
        ),
        who=at_google(
            you=N_("can open Gmail with the account, or link another one."),
            admin=N_("can switch Gmail on for the account."),
        ),
        steps=(
            Step(N_("Open mail.google.com as %(account)s: what is missing is said there.")),
            Step(N_("Copy the text for the admin and send it."), Action.COPY_ADMIN_MESSAGE),
            AUTHORIZE,
        ),
        admin_message=HELLO_GMAIL,
    )
    yield Explanation(
        key="google-link-again",
        title=N_("The sign-in at Google could not be completed"),
        cause=N_(
            "Google’s answer can be used once and within minutes. A reload, a second window or a "
            "long pause uses it up."
        ),
        who=SIGN_IN,
        steps=(LINK_AGAIN,),
    )
    yield Explanation(
        key="google-link-state",
        title=N_("This sign-in was not started here"),
        cause=N_(
            "The answer from Google belongs to no sign-in that is under way in this browser: it "
            "was used already, took longer than allowed, or the browser dropped its cookie."
        ),
        who=SIGN_IN,
        steps=(
            LINK_AGAIN,
            Step(N_("If it stays, allow cookies for this address, and open it by one name only.")),
        ),
    )
    yield Explanation(
        key="google-link-incomplete",
        title=N_("Google’s answer was incomplete"),
        cause=N_("The browser came back without an answer that can be used."),
        who=SIGN_IN,
        steps=(LINK_AGAIN,),
    )


def registrations() -> Iterator[Explanation]:
    """What is wrong with the registration."""
    yield Explanation(
        key="google-app-refused",
        title=N_("Google does not accept the registration"),
        cause=N_(
            "Client ID and Client Secret do not belong together, or the client was deleted or "
            "disabled. All mailboxes linked by it wait; their links stay good."
        ),
        who=GOOGLE_APP,
        steps=(NEW_SECRET, PASTE_SECRET, TEST),
    )
    yield Explanation(
        key="google-api-off",
        title=N_("The Gmail API is not switched on"),
        cause=N_("The Google Cloud project of the registration may not use the Gmail API."),
        who=GOOGLE_APP,
        steps=(
            Step(
                N_(
                    "Open Google Cloud console › APIs & Services › Library › Gmail API in the "
                    "project of %(app_name)s, and press Enable. It takes a few minutes."
                ),
                Action.OPEN_APP,
            ),
            TEST,
        ),
    )
    yield Explanation(
        key="google-redirect",
        title=N_("The redirect URI is not registered at Google"),
        cause=N_(
            "Google sends people back to the addresses of the client alone, letter by letter."
        ),
        who=GOOGLE_APP,
        steps=(
            Step(
                N_(
                    "Open Google Cloud console › Google Auth Platform › Clients › %(app_name)s, "
                    "and paste the Redirect URI under Authorized redirect URIs. It takes minutes "
                    "to count."
                ),
                Action.OPEN_APP,
            ),
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="google-internal",
        title=N_("The registration serves another organization only"),
        cause=N_(
            "Its consent screen is Internal: accounts of one Workspace organization may sign in."
        ),
        who=GOOGLE_APP,
        steps=(
            Step(N_("Start again, and sign in with an account of that organization.")),
            Step(
                N_(
                    "Or open Google Cloud console › Google Auth Platform › Audience, and make it "
                    "External."
                ),
                Action.OPEN_APP,
            ),
        ),
    )


def mails() -> Iterator[Explanation]:
    """What goes wrong when a mail is sent."""
    yield Explanation(
        key="google-slow",
        title=N_("Google asks to slow down"),
        cause=N_(
            "The account sent as much as it may for now, or too much at a time: 2,000 mails a day "
            "in Google Workspace, 500 in Gmail. Nothing is lost: the mail waits."
        ),
        who=at_google(
            you=N_("can lower the rate in the settings, if it happens often."),
            google=N_("takes mail again after the pause it asked for."),
        ),
        steps=(
            WAIT,
            Step(
                N_(
                    "If it happens often, set fewer mails a minute for the connection. Other "
                    "programs that use the mailbox count too."
                ),
                Action.OPEN_CONNECTION,
            ),
        ),
        retry=True,
    )
    yield Explanation(
        key="google-busy",
        title=N_("Google is busy or in maintenance"),
        cause=N_("The service could not take the mail just now. It is kept and tried again."),
        who=GOES_ON,
        steps=(WAIT, STATUS_PAGE),
        retry=True,
    )
    yield Explanation(
        key="google-unclear",
        title=N_("Google’s answer does not say whether the mail went out"),
        cause=N_(
            "The mail was handed over, then Google reported a fault or gave no answer. It may have "
            "been sent all the same."
        ),
        who=at_google(
            you=N_("can look under Sent of %(account)s."),
            google=N_("has to recover; such faults are short."),
        ),
        steps=(
            Step(N_("Look under Sent of %(account)s, or ask the recipient.")),
            AS_THE_SITE_WISHES,
            TEST,
        ),
    )
    yield Explanation(
        key="google-unreachable",
        title=N_("This server cannot reach Google"),
        cause=N_("No connection came about, so nothing was sent. The mail is kept."),
        who=at_google(
            operator=N_("can check network, name service, firewall and proxy of the machine."),
            google=N_("has to recover, if others cannot reach it either."),
        ),
        steps=(
            Step(
                N_(
                    "Ask whoever runs this Postroom to allow HTTPS (port 443) to "
                    "accounts.google.com, oauth2.googleapis.com and gmail.googleapis.com."
                )
            ),
            RETRIES,
        ),
        retry=True,
    )
    yield Explanation(
        key="google-tls",
        title=N_("The encrypted connection to Google did not come about"),
        cause=N_(
            "The certificate could not be verified. Often a proxy or a virus scanner opens "
            "encrypted traffic, or the clock of the server is wrong."
        ),
        who=at_google(operator=N_("can put it right: trust the certificate of the proxy.")),
        steps=(
            Step(
                N_(
                    "Ask whoever runs this Postroom to name the proxy’s certificate in "
                    "POSTROOM_CA_BUNDLE, or to let Google’s addresses pass unopened."
                )
            ),
            Step(N_("Check that date and time of this server are right to the minute.")),
            TEST,
        ),
    )
    yield Explanation(
        key="google-recipients",
        title=N_("Google does not accept a recipient"),
        cause=N_("An address among the recipients is not valid, or there are too many."),
        who=SITE,
        steps=(CORRECT_RECIPIENTS,),
    )
    yield Explanation(
        key="google-too-large",
        title=N_("The mail is too large for Gmail"),
        cause=N_("Gmail takes up to 35 MB, attachments as they are encoded in the mail."),
        who=SITE,
        steps=(
            Step(N_("Send it with smaller attachments, or with links to the files.")),
            OTHER_MAILER,
        ),
    )
    yield Explanation(
        key="google-request",
        title=N_("Gmail refused this mail"),
        cause=N_("Something about this one mail does not suit Gmail. Other mail is not touched."),
        who=at_google(you=N_("can look at Google’s words and change the mail.")),
        steps=(TEST, OTHER_MAILER),
    )
    yield Explanation(
        key="google-unknown",
        title=N_("Google refused"),
        cause=N_("What Google says stands below; there is no explanation for it here yet."),
        who=at_google(
            you=N_("can look at Google’s words and try once more."),
            google=N_("can say what its words mean."),
        ),
        steps=(TEST, OTHER_MAILER),
    )


BY_CODE: Mapping[str, str] = {
    "invalid_grant": "google-link-ended",
    "invalid_rapt": "google-session-policy",
    "invalid_client": "google-app-refused",
    "deleted_client": "google-app-refused",
    "disabled_client": "google-app-refused",
    "unauthorized_client": "google-app-refused",
    "access_denied": "google-declined",
    "admin_policy_enforced": "google-domain-policy",
    "org_internal": "google-internal",
    "redirect_uri_mismatch": "google-redirect",
    "temporarily_unavailable": "google-busy",
    "server_error": "google-busy",
    "rate_limit_exceeded": "google-slow",
    "backendError": "google-busy",
    "authError": "google-token-refused",
    "UNAUTHENTICATED": "google-token-refused",
    "accessNotConfigured": "google-api-off",
    "SERVICE_DISABLED": "google-api-off",
    "insufficientPermissions": "google-permission",
    "ACCESS_TOKEN_SCOPE_INSUFFICIENT": "google-permission",
    "scopes-changed": "google-permission",
    "scope_missing": "google-permission",
    "rateLimitExceeded": "google-slow",
    "userRateLimitExceeded": "google-slow",
    "dailyLimitExceeded": "google-slow",
    "quotaExceeded": "google-slow",
    "RESOURCE_EXHAUSTED": "google-slow",
    "domainPolicy": "google-domain-policy",
    "failedPrecondition": "google-no-mailbox",
    "FAILED_PRECONDITION": "google-no-mailbox",
    "forbidden": "google-domain-policy",
    "invalidArgument": "google-request",
    "INVALID_ARGUMENT": "google-request",
    "badContent": "google-request",
    "uploadTooLarge": "google-too-large",
}
BY_STATUS: Mapping[int, str] = {
    400: "google-request",
    401: "google-token-refused",
    403: "google-permission",
    413: "google-too-large",
    429: "google-slow",
    500: "google-unclear",
    502: "google-unclear",
    503: "google-busy",
    504: "google-unclear",
}
BY_CAUSE: Mapping[str, str] = {
    Cause.DNS: "google-unreachable",
    Cause.CONNECT: "google-unreachable",
    Cause.TLS: "google-tls",
    Cause.AUTH: "google-token-refused",
    Cause.RATE: "google-slow",
    Cause.TIMEOUT: "google-unreachable",
    Cause.LOST: "google-unreachable",
    Cause.LOST_ANSWER: "google-unclear",
    "owner-lost": "google-unclear",
    Cause.PROTOCOL: "google-unreachable",
    Cause.SENDER_REFUSED: "google-request",
    Cause.RECIPIENT_REFUSED: "google-recipients",
    Cause.TOO_MANY_RECIPIENTS: "google-recipients",
    Cause.CONTENT_REFUSED: "google-request",
    Cause.TOO_LARGE: "google-too-large",
}
