"""What goes wrong between an app registration, an account and a link at Microsoft."""

from collections.abc import Iterator

from webapp.explain.model import Action, Explanation, Step
from webapp.explain.parts import (
    API_PERMISSIONS,
    APP,
    ASK_CONSENT,
    AUTHORIZE,
    CHECK_ID,
    CHOOSE_CLOUD,
    COPY,
    EXEMPT,
    GOES_ON,
    HELLO_ACCOUNT,
    HELLO_APP,
    HELLO_CONSENT,
    HELLO_POLICY,
    HELLO_TENANT,
    LINK_AGAIN,
    NEW_SECRET,
    PASTE_VALUE,
    POLICY,
    SIGN_IN,
    SIGN_IN_LOG,
    TEST,
    TEST_LATER,
    WAIT,
    at_microsoft,
)
from webapp.fields import N_

# --- the app registration and the settings that name it ----------------------------------------


def registration() -> Iterator[Explanation]:
    yield Explanation(
        key="secret-wrong",
        title=N_("The Application Password is not the right one"),
        cause=N_(
            "Microsoft does not know this client secret. Most often the Secret ID was pasted in "
            "place of the Value."
        ),
        who=APP,
        steps=(NEW_SECRET, PASTE_VALUE, TEST),
    )
    yield Explanation(
        key="secret-expired",
        title=N_("The Application Password has expired"),
        cause=N_(
            "The client secret of the app registration has run out. All mailboxes linked with it "
            "wait; their links stay good."
        ),
        who=APP,
        steps=(NEW_SECRET, PASTE_VALUE, TEST),
    )
    yield Explanation(
        key="app-login-refused",
        title=N_("Microsoft does not accept the app’s sign-in"),
        cause=N_(
            "Application ID and Application Password do not belong together, or one is missing."
        ),
        who=APP,
        steps=(CHECK_ID, NEW_SECRET, PASTE_VALUE, TEST),
    )
    yield Explanation(
        key="certificate-refused",
        title=N_("Microsoft does not accept the certificate of the app"),
        cause=N_(
            "The certificate uploaded at Microsoft does not match the private key here, has run "
            "out, or the clock of this server is wrong."
        ),
        who=APP,
        steps=(
            Step(
                N_(
                    "Upload the matching certificate in Microsoft Entra admin center › App "
                    "registrations › %(app_name)s › Certificates & secrets › Certificates › Upload "
                    "certificate."
                ),
                Action.OPEN_APP,
            ),
            Step(N_("Check that date and time of this server are right to the minute.")),
            TEST,
        ),
    )
    yield Explanation(
        key="platform-not-web",
        title=N_("The redirect address is registered for the wrong platform"),
        cause=N_(
            "It stands under Single-page application or Mobile and desktop applications. Only "
            "under Web does Microsoft accept an Application Password and give a lasting link."
        ),
        who=APP,
        steps=(
            Step(
                N_(
                    "Open Microsoft Entra admin center › App registrations › %(app_name)s › "
                    "Authentication, remove the Redirect URI where it stands, then Add a platform "
                    "› Web, and paste it there."
                ),
                Action.OPEN_APP,
            ),
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="app-unknown",
        title=N_("Microsoft does not know this app here"),
        cause=N_(
            "No app has this Application ID in the organization or cloud asked: a typing error, a "
            "deleted app, another cloud, or an app that may be used in one organization only."
        ),
        who=APP,
        steps=(
            CHECK_ID,
            CHOOSE_CLOUD,
            Step(
                N_(
                    "If the app serves one organization only, fill in Directory (tenant) ID with "
                    "the value of the same Overview page."
                ),
                Action.OPEN_CONNECTION,
            ),
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="app-disabled",
        title=N_("The app has been switched off"),
        cause=N_("An administrator disabled %(app_name)s, so nobody can sign in with it."),
        who=at_microsoft(
            you=N_("can ask for it with the text below."),
            admin=N_("can switch it on again."),
        ),
        steps=(
            COPY,
            Step(
                N_(
                    "The admin opens Microsoft Entra admin center › Enterprise applications › "
                    "%(app_name)s › Properties, and sets “Enabled for users to sign-in” to Yes."
                )
            ),
            TEST_LATER,
        ),
        admin_message=HELLO_APP,
    )
    yield Explanation(
        key="single-tenant",
        title=N_("The app serves one organization only"),
        cause=N_(
            "Its registration allows accounts of a single organization, but no Directory (tenant) "
            "ID is filled in here."
        ),
        who=APP,
        steps=(
            Step(
                N_(
                    "Fill in Directory (tenant) ID: Microsoft Entra admin center › App "
                    "registrations › %(app_name)s › Overview › Directory (tenant) ID. Save."
                ),
                Action.OPEN_CONNECTION,
            ),
            Step(
                N_(
                    "Or widen the app: App registrations › %(app_name)s › Authentication › "
                    "Supported account types › accounts in any organizational directory and "
                    "personal Microsoft accounts."
                ),
                Action.OPEN_APP,
            ),
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="account-types",
        title=N_("Account type here and in the app registration differ"),
        cause=N_("The settings here ask for another kind of account than the registration allows."),
        who=APP,
        steps=(
            Step(
                N_(
                    "Look up Microsoft Entra admin center › App registrations › %(app_name)s › "
                    "Authentication › Supported account types."
                ),
                Action.OPEN_APP,
            ),
            Step(N_("Choose the same account type here, and save."), Action.OPEN_CONNECTION),
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="personal-account",
        title=N_("The app does not take personal accounts"),
        cause=N_(
            "A personal account (Outlook.com, Hotmail, Live) was used, and the registration allows "
            "work and school accounts only."
        ),
        who=APP,
        steps=(
            Step(
                N_("Sign in with a work or school account instead."),
                Action.REAUTHORISE,
            ),
            Step(
                N_(
                    "Or open Microsoft Entra admin center › App registrations › %(app_name)s › "
                    "Manifest, and set signInAudience to AzureADandPersonalMicrosoftAccount."
                ),
                Action.OPEN_APP,
            ),
        ),
    )
    yield Explanation(
        key="redirect-address",
        title=N_("The redirect address does not match"),
        cause=N_(
            "The Redirect URI in the app registration is missing or differs from the one shown "
            "here. Every letter counts: http or https, a slash at the end, nothing after a “?”."
        ),
        who=APP,
        steps=(
            Step(
                N_("Copy the Redirect URI from the settings of the connection."),
                Action.OPEN_CONNECTION,
            ),
            Step(
                N_(
                    "Paste it in Microsoft Entra admin center › App registrations › %(app_name)s › "
                    "Authentication › Add a platform › Web › Redirect URIs. Save."
                ),
                Action.OPEN_APP,
            ),
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="wrong-cloud",
        title=N_("The account lives in another Microsoft cloud"),
        cause=N_(
            "Microsoft runs separate clouds, for example for the US government and for China. An "
            "app registration and its links are valid in one of them only."
        ),
        who=APP,
        steps=(
            CHOOSE_CLOUD,
            Step(
                N_(
                    "Register the app in the portal of that cloud, and fill in its Application ID "
                    "and Application Password."
                ),
                Action.OPEN_APP,
            ),
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="tenant-unknown",
        title=N_("Microsoft does not know this organization"),
        cause=N_(
            "Directory (tenant) ID holds a value that does not exist in the chosen cloud, or none "
            "could be found out."
        ),
        who=APP,
        steps=(
            Step(
                N_(
                    "Compare Directory (tenant) ID with Microsoft Entra admin center › App "
                    "registrations › %(app_name)s › Overview › Directory (tenant) ID."
                ),
                Action.OPEN_CONNECTION,
            ),
            CHOOSE_CLOUD,
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="scope-refused",
        title=N_("Microsoft does not know the permissions asked for"),
        cause=N_(
            "The permissions belong to the Graph address of another cloud, or Microsoft Graph is "
            "not available in %(tenant)s."
        ),
        who=APP,
        steps=(CHOOSE_CLOUD, API_PERMISSIONS, AUTHORIZE),
    )
    yield Explanation(
        key="app-permissions",
        title=N_("Permissions are missing in the app registration"),
        cause=N_(
            "The registration does not list the Microsoft Graph permissions that sending needs, or "
            "the admin has not granted them."
        ),
        who=APP,
        steps=(
            API_PERMISSIONS,
            Step(
                N_(
                    "If the column Status there warns, an admin presses “Grant admin consent for "
                    "%(tenant)s” on the same page."
                ),
                Action.ASK_ADMIN,
            ),
            AUTHORIZE,
        ),
        admin_message=HELLO_CONSENT,
    )
    yield Explanation(
        key="sign-in-request",
        title=N_("Microsoft did not understand the sign-in request"),
        cause=N_(
            "Something in the request is missing or not allowed. A wrong setting can do that, or a "
            "proxy on the way that changes requests."
        ),
        who=APP,
        steps=(
            CHECK_ID,
            Step(
                N_(
                    "Check that Redirect URI stands under Microsoft Entra admin center › App "
                    "registrations › %(app_name)s › Authentication › Web."
                ),
                Action.OPEN_APP,
            ),
            Step(N_("If it stays, send the debug log with Microsoft’s code to support.")),
        ),
    )
    yield Explanation(
        key="azure-directory",
        title=N_("An Azure directory is needed first"),
        cause=N_(
            "Microsoft no longer lets a personal account register apps outside a directory. "
            "Registering an app is free, but signing up for Azure may ask for a credit card."
        ),
        who=at_microsoft(
            you=N_("can sign up for Azure, which makes a directory."),
            operator=N_("can offer One-Click Setup, which needs no app of your own."),
        ),
        steps=(
            Step(
                N_("Quickest: switch One-Click Setup on, if it is offered."), Action.OPEN_CONNECTION
            ),
            Step(N_("Or sign up at azure.microsoft.com, and register the app after that.")),
        ),
    )


# --- giving consent ----------------------------------------------------------------------------


def consent() -> Iterator[Explanation]:
    yield Explanation(
        key="declined",
        title=N_("The permission was not given"),
        cause=N_("The sign-in at Microsoft was cancelled, or No was pressed."),
        who=SIGN_IN,
        steps=(
            Step(
                N_(
                    "Start again, sign in with the mailbox that sends the mail, and press Accept "
                    "on Microsoft’s page."
                ),
                Action.REAUTHORISE,
            ),
            Step(
                N_("If Microsoft’s page offers no Accept, an admin has to approve the app first."),
                Action.ASK_ADMIN,
            ),
        ),
        admin_message=HELLO_CONSENT,
    )
    yield Explanation(
        key="consent-missing",
        title=N_("The app has no permission to send"),
        cause=N_(
            "The consent for %(app_name)s was never given, has been withdrawn, or does not cover "
            "what is needed now. Many organizations want an admin to approve an app."
        ),
        who=at_microsoft(
            you=N_("can give it: re-authorize and accept."),
            admin=N_("has to approve, if Microsoft’s page says “Need admin approval”."),
        ),
        steps=(AUTHORIZE, ASK_CONSENT),
        admin_message=HELLO_CONSENT,
    )
    yield Explanation(
        key="admin-consent",
        title=N_("An administrator has to approve the app"),
        cause=N_("In %(tenant)s, people may not approve this app by themselves."),
        who=at_microsoft(
            you=N_("can send your admin the link, then link the mailbox."),
            admin=N_("can put it right: one approval for the whole organization."),
        ),
        steps=(
            ASK_CONSENT,
            Step(
                N_(
                    "Or the admin opens Microsoft Entra admin center › Enterprise applications › "
                    "%(app_name)s › Permissions, and presses “Grant admin consent for %(tenant)s”."
                )
            ),
            AUTHORIZE,
        ),
        admin_message=HELLO_CONSENT,
    )
    yield Explanation(
        key="admin-consent-asked",
        title=N_("Your admin has been asked for approval"),
        cause=N_("Microsoft has sent your request to the reviewers of %(tenant)s."),
        who=at_microsoft(
            you=N_("can link the mailbox as soon as the request is approved."),
            admin=N_(
                "can approve it in Microsoft Entra admin center › Enterprise applications › Admin "
                "consent requests."
            ),
        ),
        steps=(
            Step(N_("Wait for the answer; Microsoft tells you by mail.")),
            AUTHORIZE,
        ),
        admin_message=HELLO_CONSENT,
    )
    yield Explanation(
        key="unverified-publisher",
        title=N_("The publisher of the app is not verified"),
        cause=N_(
            "In %(tenant)s, people may approve apps of verified publishers only. An "
            "app of another organization needs an admin then."
        ),
        who=at_microsoft(
            you=N_("can send your admin the link, or use an app of your own organization."),
            admin=N_("can put it right: one approval for the whole organization."),
        ),
        steps=(
            ASK_CONSENT,
            Step(
                N_(
                    "Or register an app in your own organization, switch One-Click Setup off, and "
                    "fill in that app."
                ),
                Action.OPEN_CONNECTION,
            ),
            AUTHORIZE,
        ),
        admin_message=HELLO_CONSENT,
    )
    yield Explanation(
        key="not-assigned",
        title=N_("The account is not assigned to the app"),
        cause=N_("In %(tenant)s, only assigned people may use %(app_name)s."),
        who=at_microsoft(
            you=N_("can ask for it with the text below."),
            admin=N_("can put it right: assign %(account)s to the app."),
        ),
        steps=(
            COPY,
            Step(
                N_(
                    "The admin opens Microsoft Entra admin center › Enterprise applications › "
                    "%(app_name)s › Users and groups › Add user/group, and adds %(account)s."
                )
            ),
            AUTHORIZE,
        ),
        admin_message=HELLO_APP,
    )
    yield Explanation(
        key="permissions-changed",
        title=N_("Not all permissions were granted"),
        cause=N_(
            "Microsoft granted less than this connection needs: it needs more than before, or part "
            "of it was left out on Microsoft’s page."
        ),
        who=at_microsoft(
            you=N_("can put it right: re-authorize and accept all permissions."),
            admin=N_("has to approve, if Microsoft’s page says “Need admin approval”."),
        ),
        steps=(AUTHORIZE, ASK_CONSENT),
        admin_message=HELLO_CONSENT,
    )
    yield Explanation(
        key="link-again",
        title=N_("The sign-in could not be completed"),
        cause=N_(
            "Microsoft’s answer can be used once and within ten minutes. A reload, a second window "
            "or a long pause uses it up."
        ),
        who=SIGN_IN,
        steps=(LINK_AGAIN,),
    )
    yield Explanation(
        key="link-state",
        title=N_("This sign-in was not started here"),
        cause=N_(
            "The answer from Microsoft belongs to no sign-in that is under way in this browser: it "
            "was used already, took longer than allowed, or the browser dropped its cookie."
        ),
        who=SIGN_IN,
        steps=(
            LINK_AGAIN,
            Step(N_("If it stays, allow cookies for this address, and open it by one name only.")),
        ),
    )
    yield Explanation(
        key="link-incomplete",
        title=N_("Microsoft’s answer was incomplete"),
        cause=N_("The browser came back without an answer that can be used."),
        who=SIGN_IN,
        steps=(
            LINK_AGAIN,
            Step(
                N_(
                    "If it stays, switch off browser extensions that shorten addresses, and ask "
                    "whether a proxy does so."
                )
            ),
        ),
    )


# --- what ends a link --------------------------------------------------------------------------


def links() -> Iterator[Explanation]:
    yield Explanation(
        key="sessions-revoked",
        title=N_("Microsoft has ended the link"),
        cause=N_(
            "All sign-ins of %(account)s were revoked: after a new password, or because the person "
            "or an admin signed out everywhere."
        ),
        who=SIGN_IN,
        steps=(AUTHORIZE,),
    )
    yield Explanation(
        key="password-changed",
        title=N_("The password of the mailbox has changed"),
        cause=N_("With the new password, Microsoft ended the link of %(account)s."),
        who=SIGN_IN,
        steps=(AUTHORIZE,),
    )
    yield Explanation(
        key="password-expired",
        title=N_("The password of the mailbox has expired"),
        cause=N_("Microsoft wants a new password for %(account)s before it lets anybody in."),
        who=SIGN_IN,
        steps=(
            Step(N_("Sign in at outlook.office.com as %(account)s, and set a new password.")),
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="link-unused",
        title=N_("The link was not used for too long"),
        cause=N_("Microsoft lets a link run out after 90 days without use."),
        who=SIGN_IN,
        steps=(
            AUTHORIZE,
            Step(
                N_(
                    "Links here are renewed every day. If this comes again, ask whoever runs this "
                    "Postroom whether it was off for so long."
                )
            ),
        ),
    )
    yield Explanation(
        key="link-expired",
        title=N_("The link has run out"),
        cause=N_("Microsoft no longer accepts it: too much time passed, or it was revoked."),
        who=SIGN_IN,
        steps=(AUTHORIZE,),
    )
    yield Explanation(
        key="sign-in-frequency",
        title=N_("Your organization wants a new sign-in"),
        cause=N_("A rule of %(tenant)s ends every sign-in after a set time."),
        who=at_microsoft(
            you=N_("can sign in once more; it lasts until the time is over again."),
            admin=N_("can put it right for good: exempt this account."),
        ),
        steps=(AUTHORIZE, COPY, EXEMPT),
        admin_message=HELLO_POLICY,
    )
    yield Explanation(
        key="link-refused",
        title=N_("Microsoft no longer accepts the link"),
        cause=N_(
            "The link of %(account)s was withdrawn, or something about the account has changed. "
            "Personal accounts are also refused while Microsoft has blocked them."
        ),
        who=SIGN_IN,
        steps=(
            Step(N_("Sign in at outlook.com as %(account)s, and settle any notice shown there.")),
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="mfa-needed",
        title=N_("Microsoft wants a second proof of identity"),
        cause=N_(
            "Multifactor authentication was switched on for %(account)s, or the last one is too "
            "long ago. The link was made without it."
        ),
        who=SIGN_IN,
        steps=(
            Step(
                N_(
                    "Re-authorize as %(account)s, and confirm the sign-in by phone or app when "
                    "asked. After that it holds."
                ),
                Action.REAUTHORISE,
            ),
        ),
    )
    yield Explanation(
        key="mfa-register",
        title=N_("A second proof of identity has to be set up"),
        cause=N_(
            "Multifactor authentication is a must in %(tenant)s, and %(account)s has none yet."
        ),
        who=SIGN_IN,
        steps=(
            Step(
                N_(
                    "Open mysignins.microsoft.com/security-info as %(account)s › Add sign-in "
                    "method."
                )
            ),
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="token-refused",
        title=N_("Microsoft does not accept the sign-in of the mailbox"),
        cause=N_(
            "The access that was given for this connection is not valid any more, and renewing it "
            "did not help."
        ),
        who=SIGN_IN,
        steps=(AUTHORIZE, TEST),
    )


# --- rules of the organization, and the account ------------------------------------------------


def accounts() -> Iterator[Explanation]:
    yield Explanation(
        key="policy-blocks",
        title=N_("A policy of your organization blocks the sign-in"),
        cause=N_("Conditional Access or the security defaults of %(tenant)s refuse it."),
        who=POLICY,
        steps=(COPY, SIGN_IN_LOG, EXEMPT, AUTHORIZE),
        admin_message=HELLO_POLICY,
    )
    yield Explanation(
        key="device-needed",
        title=N_("Your organization lets only managed devices sign in"),
        cause=N_("A server has no such device, so %(tenant)s refuses the link."),
        who=POLICY,
        steps=(COPY, SIGN_IN_LOG, EXEMPT, AUTHORIZE),
        admin_message=HELLO_POLICY,
    )
    yield Explanation(
        key="tenant-restriction",
        title=N_("An organization does not allow this access"),
        cause=N_(
            "The sign-in crosses from one organization or cloud to another, and one of them does "
            "not permit it."
        ),
        who=POLICY,
        steps=(
            COPY,
            Step(
                N_(
                    "The admin opens Microsoft Entra admin center › External Identities › "
                    "Cross-tenant access settings, and allows it."
                )
            ),
            AUTHORIZE,
        ),
        admin_message=HELLO_TENANT,
    )
    yield Explanation(
        key="wrong-account",
        title=N_("This account does not belong here"),
        cause=N_(
            "The app serves accounts of another organization or of another kind than the account "
            "that signed in."
        ),
        who=at_microsoft(
            you=N_("can sign in with another account."),
            operator=N_("can widen the account types of the app, if One-Click Setup is on."),
        ),
        steps=(
            Step(
                N_(
                    "Start again, choose “Use another account” on Microsoft’s page, and sign in "
                    "with the mailbox that sends the mail."
                ),
                Action.REAUTHORISE,
            ),
            Step(
                N_(
                    "Or widen your app: Microsoft Entra admin center › App registrations › "
                    "%(app_name)s › Authentication › Supported account types."
                ),
                Action.OPEN_APP,
            ),
        ),
    )
    yield Explanation(
        key="account-unknown",
        title=N_("Microsoft does not know this account"),
        cause=N_(
            "Microsoft does not find %(account)s in %(tenant)s: a typing error, or it was deleted."
        ),
        who=at_microsoft(
            you=N_("can link another account."),
            admin=N_("can restore a deleted account within 30 days."),
        ),
        steps=(
            Step(
                N_("Sign in with an account that exists, with its full address."),
                Action.REAUTHORISE,
            ),
            COPY,
        ),
        admin_message=HELLO_ACCOUNT,
    )
    yield Explanation(
        key="account-disabled",
        title=N_("The account is disabled"),
        cause=N_("Nobody can sign in as %(account)s, so nothing can be sent in its name."),
        who=at_microsoft(
            you=N_("can link another account."),
            admin=N_("can unblock it."),
        ),
        steps=(
            COPY,
            Step(
                N_(
                    "The admin opens Microsoft 365 admin center › Users › Active users › "
                    "%(account)s › Unblock sign-in."
                )
            ),
            AUTHORIZE,
        ),
        admin_message=HELLO_ACCOUNT,
    )
    yield Explanation(
        key="account-locked",
        title=N_("The account is locked for now"),
        cause=N_(
            "Microsoft saw too many wrong passwords for %(account)s, or a sign-in from an address "
            "that it does not trust."
        ),
        who=at_microsoft(
            you=N_("can wait half an hour, then sign in."),
            admin=N_("can look into the sign-in log."),
        ),
        steps=(
            Step(N_("Wait 30 minutes, without trying in between.")),
            AUTHORIZE,
            SIGN_IN_LOG,
        ),
        admin_message=HELLO_POLICY,
    )
    yield Explanation(
        key="account-suspended",
        title=N_("Microsoft has suspended the account"),
        cause=N_("It saw unusual activity in %(account)s, and wants its owner to confirm it."),
        who=at_microsoft(
            you=N_("can put it right: sign in to the mailbox."),
            microsoft=N_("lifts it, often within a day, once the owner has confirmed."),
        ),
        steps=(
            Step(
                N_(
                    "Sign in at outlook.com as %(account)s, and follow the notice, or the mail "
                    "from Microsoft in its inbox."
                )
            ),
            AUTHORIZE,
        ),
    )
    yield Explanation(
        key="sign-in-unfinished",
        title=N_("The sign-in was not finished"),
        cause=N_("Microsoft’s page asked for something more, such as the password of the account."),
        who=SIGN_IN,
        steps=(
            Step(
                N_("Sign in once more as %(account)s, and answer every question of the page."),
                Action.REAUTHORISE,
            ),
        ),
    )
    yield Explanation(
        key="sign-in-busy",
        title=N_("Microsoft’s sign-in service is busy"),
        cause=N_("It could not answer just now. The link itself is good."),
        who=GOES_ON,
        steps=(
            WAIT,
            Step(N_("While linking a mailbox: start again in a few minutes."), Action.REAUTHORISE),
        ),
        retry=True,
    )
