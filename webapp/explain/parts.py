"""What explanations share: who can put it right, steps, and texts for an administrator."""

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum

from webapp.explain.model import Action, Explanation, Part, Step, Who
from webapp.fields import N_

# --- who can put it right ----------------------------------------------------------------------

_NOT_NEEDED = {
    Who.YOU: N_("have nothing to do for this."),
    Who.ADMIN: N_("is not needed for this."),
    Who.MICROSOFT: N_("Nothing to wait for there."),
    Who.WORKSPACE_ADMIN: N_("is not needed for this."),
    Who.GOOGLE: N_("Nothing to wait for there."),
    Who.PROVIDER: N_("Nothing to wait for there."),
    Who.OPERATOR: N_("is not needed for this."),
}


def _parts(said: Mapping[Who, str]) -> tuple[Part, ...]:
    return tuple(
        Part(who=who, sentence=sentence or _NOT_NEEDED[who], on=bool(sentence))
        for who, sentence in said.items()
    )


def at_microsoft(
    *, you: str = "", admin: str = "", microsoft: str = "", operator: str = ""
) -> tuple[Part, ...]:
    """The three of the Microsoft link, and the operator where there is something to do."""
    parts = {Who.YOU: you, Who.ADMIN: admin, Who.MICROSOFT: microsoft}
    return _parts(parts | ({Who.OPERATOR: operator} if operator else {}))


def at_google(
    *, you: str = "", admin: str = "", google: str = "", operator: str = ""
) -> tuple[Part, ...]:
    """The three of a link at Google, and the operator where there is something to do."""
    parts = {Who.YOU: you, Who.WORKSPACE_ADMIN: admin, Who.GOOGLE: google}
    return _parts(parts | ({Who.OPERATOR: operator} if operator else {}))


def at_a_server(*, you: str = "", operator: str = "", provider: str = "") -> tuple[Part, ...]:
    """The three of a mail server."""
    return _parts({Who.YOU: you, Who.OPERATOR: operator, Who.PROVIDER: provider})


APP = at_microsoft(
    you=N_("can put it right, if the app registration is your own."),
    admin=N_("can do it for you in the Microsoft Entra admin center."),
    operator=N_("does it, if One-Click Setup is on: the registration is theirs."),
)


GOOGLE_APP = at_google(
    you=N_("can put it right, if the registration is your own."),
    operator=N_("does it, if One-Click Setup is on: the registration is theirs."),
)


class Keeper(Enum):
    """Who keeps the app registration that an explanation is about; its value says so of one at
    Microsoft."""

    READER = at_microsoft(
        you=N_("can put it right: the app registration is kept under Microsoft apps."),
        admin=N_("can do it for you in the Microsoft Entra admin center."),
    )
    """A shared one, and whoever reads this may change it."""
    OPERATOR = at_microsoft(operator=N_("has to put it right: the app registration is theirs."))
    """A shared one, and whoever reads this may not."""
    CONNECTION = at_microsoft(
        you=N_("can put it right: the app registration belongs to this connection."),
        admin=N_("can do it for you in the Microsoft Entra admin center."),
    )


_ADMINS = {Who.ADMIN, Who.WORKSPACE_ADMIN}
_AT_GOOGLE = {
    Keeper.READER: at_google(
        you=N_("can put it right: the registration is kept under Google registrations.")
    ),
    Keeper.OPERATOR: at_google(operator=N_("has to put it right: the registration is theirs.")),
    Keeper.CONNECTION: at_google(
        you=N_("can put it right: the registration belongs to this connection.")
    ),
}


def fitted(
    found: Explanation, *, keeper: Keeper | None = None, personal: bool = False
) -> Explanation:
    """The explanation for whoever reads it: who keeps the registration, where that is known, and
    no administrator for a personal account, which has none."""
    if keeper is not None and found.who == APP:
        found = replace(found, who=keeper.value)
    elif keeper is not None and found.who == GOOGLE_APP:
        found = replace(found, who=_AT_GOOGLE[keeper])
    if not personal:
        return found
    asks = {Action.ASK_ADMIN, Action.COPY_ADMIN_MESSAGE}
    who = tuple(part for part in found.who if part.who not in _ADMINS)
    steps = tuple(step for step in found.steps if step.action not in asks)
    return replace(found, who=who, steps=steps, admin_message="") if steps else found


SIGN_IN = at_microsoft(you=N_("can put it right now: sign in once more."))
POLICY = at_microsoft(
    you=N_("can send the text below to your admin; signing in again does not change it."),
    admin=N_("can put it right: the rule is set by your organization."),
)
GOES_ON = at_microsoft(microsoft=N_("has to recover; until then the mail waits here."))
SITE = at_microsoft(you=N_("can put it right at the site or program that wrote the mail."))
SITE_AT_SERVER = at_a_server(
    you=N_("can put it right at the site or program that wrote the mail."),
    provider=N_("can say what its words mean."),
)
SETTINGS = at_a_server(
    you=N_("can put it right in the settings of the connection."),
    provider=N_("can tell you the right values."),
)
NETWORK = at_a_server(
    you=N_("can check host, port and encryption."),
    operator=N_("can check the network and the firewall of the machine."),
    provider=N_("can say whether the server is up."),
)

# --- steps that come back ----------------------------------------------------------------------

AUTHORIZE = Step(
    N_("Re-authorize the connection and sign in as %(account)s. Waiting mail then leaves."),
    Action.REAUTHORISE,
)
LINK_AGAIN = Step(N_("Start linking again, in one browser window."), Action.REAUTHORISE)
TEST = Step(N_("Then test again."), Action.TEST_AGAIN)
TEST_LATER = Step(N_("Then test again. Microsoft may need up to an hour."), Action.TEST_AGAIN)
WAIT = Step(N_("Nothing to do. Next try: %(until)s."))
RETRIES = Step(N_("Waiting mail is tried again by itself. Next try: %(until)s."))
COPY = Step(N_("Copy the text for the admin and send it."), Action.COPY_ADMIN_MESSAGE)
ASK_CONSENT = Step(
    N_("Send the admin the consent link with the text below. One approval is enough."),
    Action.ASK_ADMIN,
)
NEW_SECRET = Step(
    N_(
        "Open Microsoft Entra admin center › App registrations › %(app_name)s › Certificates & "
        "secrets › Client secrets › New client secret, and choose 730 days (24 months)."
    ),
    Action.OPEN_APP,
)
PASTE_VALUE = Step(
    N_(
        "Copy the Value column (not the Secret ID; it is shown only once) into Next "
        "Application Password, with its expiry date, and save. Signing in again is not needed."
    ),
    Action.OPEN_CONNECTION,
)
CHOOSE_CLOUD = Step(
    N_("Choose the Microsoft cloud in which the mailbox lives, and save."),
    Action.OPEN_CONNECTION,
)
CHECK_ID = Step(
    N_(
        "Compare Application ID with Microsoft Entra admin center › App registrations › "
        "%(app_name)s › Overview › Application (client) ID."
    ),
    Action.OPEN_CONNECTION,
)
API_PERMISSIONS = Step(
    N_(
        "Open Microsoft Entra admin center › App registrations › %(app_name)s › API permissions › "
        "Add a permission › Microsoft Graph › Delegated permissions, and add Mail.Send, User.Read "
        "and offline_access."
    ),
    Action.OPEN_APP,
)
SIGN_IN_LOG = Step(
    N_(
        "The admin opens Microsoft Entra admin center › Monitoring & health › Sign-in logs, looks "
        "up %(account)s, and reads under Conditional Access which policy refused."
    )
)
EXEMPT = Step(
    N_(
        "The admin opens Protection › Conditional Access › Policies › that policy, and excludes "
        "the account, the app or the address of this server."
    )
)
OTHER_MAILER = Step(
    N_("Or send this mail through another connection of the site."), Action.OPEN_CONNECTION
)
CHECK_LOGIN = Step(
    N_("Type username and password again and save; some providers want an app password."),
    Action.OPEN_CONNECTION,
)
CHECK_HOST = Step(
    N_("Compare host, port and encryption with what your provider names. Usual: 587 with TLS."),
    Action.OPEN_CONNECTION,
)
FIREWALL = Step(
    N_(
        "Ask whoever runs this Postroom to let it reach %(host)s on port %(port)s; many hosting "
        "companies block mail ports."
    )
)
ALLOW_MICROSOFT = Step(
    N_(
        "Ask whoever runs this Postroom to allow HTTPS (port 443) to Microsoft’s sign-in and Graph "
        "addresses, straight or through the proxy."
    )
)
SWITCH_TO_OUTLOOK = Step(
    N_("Choose 365 / Outlook as the mailer of this connection, and save."),
    Action.OPEN_CONNECTION,
)
AUTHORIZE_NEW = Step(
    N_("Authorize it: sign in as the mailbox. No password is stored."), Action.REAUTHORISE
)
AS_THE_SITE_WISHES = Step(
    N_("What happens to such mail is a setting of the site: sent once more, or left as it is.")
)
CORRECT_RECIPIENTS = Step(
    N_("Correct the address at the site that sent the mail, and send it once more.")
)

# --- texts for the administrator ---------------------------------------------------------------

HELLO_CONSENT = N_(
    "Hello, our site sends its mail through Microsoft 365 as %(account)s, with the app "
    "%(app_name)s (Application ID: %(client_id)s). Our organization wants an administrator to "
    "approve it. The app asks for Mail.Send and User.Read on behalf of the person who signs in: it "
    "sends from that mailbox and reads its name. The link with this text opens Microsoft’s consent "
    "page for %(tenant)s; to approve there, sign in as an administrator and accept."
)
HELLO_POLICY = N_(
    "Hello, our site sends its mail through Microsoft 365 as %(account)s, with the app "
    "%(app_name)s (Application ID: %(client_id)s). A server renews the sign-in, so it has no "
    "managed device and no person at hand. Our sign-in policy refuses it. Microsoft Entra admin "
    "center › Monitoring & health › Sign-in logs shows which policy; excluding this account, this "
    "app or the address of the server from it lets the mail through."
)
HELLO_SEND_AS = N_(
    "Hello, our site sends mail as %(from_email)s, signed in as %(account)s. Microsoft refuses "
    "this until the account may send as that address. Microsoft 365 admin center › Teams & groups "
    "› Shared mailboxes › %(from_email)s › Send as permissions › Edit › add %(account)s. For the "
    "mailbox of a person: Users › Active users › %(from_email)s › Mail › Send as permissions."
)
HELLO_MAILBOX = N_(
    "Hello, our site is to send mail through Microsoft 365 as %(account)s, but this account has no "
    "mailbox in Exchange Online. Microsoft 365 admin center › Users › Active users › %(account)s › "
    "Licenses and apps shows whether a license with Exchange Online is assigned."
)
HELLO_ACCESS = N_(
    "Hello, our site sends its mail through Microsoft 365 as %(account)s, with the app "
    "%(app_name)s (Application ID: %(client_id)s). Exchange Online does not let this app use the "
    "mailbox. An application access policy, or a role in RBAC for Applications, has to include "
    "%(account)s; Get-ApplicationAccessPolicy in Exchange Online PowerShell lists the policies."
)
HELLO_APP = N_(
    "Hello, our site sends its mail through Microsoft 365 as %(account)s, with the app "
    "%(app_name)s (Application ID: %(client_id)s). Microsoft Entra admin center › Enterprise "
    "applications › %(app_name)s › Properties has to say Yes at “Enabled for users to sign-in”; if "
    "“Assignment required” says Yes as well, %(account)s has to be listed under Users and groups."
)
HELLO_ACCOUNT = N_(
    "Hello, our site sends its mail through Microsoft 365 as %(account)s. Microsoft says that this "
    "account is disabled or does not exist. Microsoft 365 admin center › Users › Active users "
    "shows whether sign-in is blocked; deleted accounts stand under Users › Deleted users for 30 "
    "days."
)
HELLO_TENANT = N_(
    "Hello, our site sends its mail through Microsoft 365 as %(account)s, with the app "
    "%(app_name)s (Application ID: %(client_id)s). The tenant restrictions or the cross-tenant "
    "access settings of an organization refuse the sign-in. Microsoft Entra admin center › "
    "External Identities › Cross-tenant access settings has to allow it."
)
HELLO_BLOCKED = N_(
    "Hello, Microsoft refuses outgoing mail of %(account)s because of its outbound spam rules. "
    "Microsoft Defender portal › Email & collaboration › Review › Restricted entities lists "
    "blocked senders and lets them send again. If the whole organization is blocked, Microsoft "
    "support has to lift that: Microsoft 365 admin center › Support › Help & support."
)
