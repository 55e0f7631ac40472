"""What goes wrong at mail servers, Microsoft’s among them, and what nobody foresaw."""

from collections.abc import Iterator

from webapp.explain.model import Action, Explanation, Step
from webapp.explain.parts import (
    AS_THE_SITE_WISHES,
    AUTHORIZE,
    AUTHORIZE_NEW,
    CHECK_HOST,
    CHECK_LOGIN,
    CORRECT_RECIPIENTS,
    FIREWALL,
    HELLO_SEND_AS,
    NETWORK,
    OTHER_MAILER,
    RETRIES,
    SETTINGS,
    SITE_AT_SERVER,
    SWITCH_TO_OUTLOOK,
    TEST,
    TEST_LATER,
    WAIT,
    at_a_server,
    at_microsoft,
)
from webapp.fields import N_


def microsoft_by_smtp() -> Iterator[Explanation]:
    yield Explanation(
        key="smtp-password-blocked",
        title=N_("Microsoft does not take a password for SMTP here"),
        cause=N_(
            "Sign-in with a password is switched off for this mailbox or for the whole "
            "organization, which security defaults do as well."
        ),
        who=at_microsoft(
            you=N_("can put it right: send through 365 / Outlook, without a password."),
            admin=N_("could allow it for the mailbox, until Microsoft ends it."),
        ),
        steps=(
            SWITCH_TO_OUTLOOK,
            AUTHORIZE_NEW,
            Step(
                N_(
                    "Or the admin opens Microsoft 365 admin center › Users › Active users › the "
                    "mailbox › Mail › Manage email apps, and ticks Authenticated SMTP."
                )
            ),
        ),
    )
    yield Explanation(
        key="smtp-password-retired",
        title=N_("Microsoft has ended passwords for SMTP"),
        cause=N_(
            "Basic authentication is no longer accepted; a new password does not change that."
        ),
        who=at_microsoft(
            you=N_("can put it right: send through 365 / Outlook, without a password.")
        ),
        steps=(SWITCH_TO_OUTLOOK, AUTHORIZE_NEW),
    )
    yield Explanation(
        key="smtp-send-as-denied",
        title=N_("Microsoft does not let this login send as %(from_email)s"),
        cause=N_(
            "The login belongs to another mailbox, and that mailbox has no right to send as "
            "%(from_email)s."
        ),
        who=at_microsoft(
            you=N_("can fix it now: set From Email to the address of the login."),
            admin=N_("can fix it too: grant “Send as” for %(from_email)s."),
        ),
        steps=(
            Step(
                N_("Quickest: set From Email to the address of the login, and force it."),
                Action.OPEN_CONNECTION,
            ),
            Step(
                N_(
                    "Or keep %(from_email)s: the admin opens Microsoft 365 admin center › Teams & "
                    "groups › Shared mailboxes › %(from_email)s › Send as permissions › Edit, and "
                    "adds the login."
                ),
                Action.COPY_ADMIN_MESSAGE,
            ),
            TEST_LATER,
        ),
        admin_message=HELLO_SEND_AS,
    )


def server_access() -> Iterator[Explanation]:
    yield Explanation(
        key="host-unknown",
        title=N_("The name of the server was not found"),
        cause=N_(
            "The name service does not know %(host)s, or does not answer. Often it "
            "is a typing error."
        ),
        who=NETWORK,
        steps=(
            Step(
                N_("Check Host for typing errors; it is a name such as smtp.example.com."),
                Action.OPEN_CONNECTION,
            ),
            Step(
                N_(
                    "If it is right, ask whoever runs this Postroom to check its name service "
                    "(DNS)."
                )
            ),
            TEST,
        ),
        retry=True,
    )
    yield Explanation(
        key="no-connection",
        title=N_("The server cannot be reached"),
        cause=N_("No connection comes about to %(host)s on port %(port)s with this encryption."),
        who=NETWORK,
        steps=(CHECK_HOST, FIREWALL, TEST),
        retry=True,
    )
    yield Explanation(
        key="no-encryption",
        title=N_("The encrypted connection did not come about"),
        cause=N_("Encryption and port do not fit together, or %(host)s is too old for it."),
        who=SETTINGS,
        steps=(
            Step(
                N_("Choose TLS with port 587, or SSL with port 465, and save."),
                Action.OPEN_CONNECTION,
            ),
            Step(N_("Ask the provider which encryption the server takes.")),
            TEST,
        ),
    )
    yield Explanation(
        key="certificate-not-trusted",
        title=N_("The certificate of the server cannot be trusted"),
        cause=N_(
            "It has run out, is made out to another name than %(host)s, or comes from an authority "
            "that this server does not know."
        ),
        who=at_a_server(
            you=N_("can use the host name for which the certificate is made out."),
            operator=N_("can add a private authority with POSTROOM_CA_BUNDLE."),
            provider=N_("can renew the certificate."),
        ),
        steps=(
            Step(
                N_(
                    "Use the host name that your provider names, not an address or your own domain."
                ),
                Action.OPEN_CONNECTION,
            ),
            Step(N_("If it is right, ask the provider to check the certificate of %(host)s.")),
            TEST,
        ),
    )
    yield Explanation(
        key="login-refused",
        title=N_("The server refused username or password"),
        cause=N_("This login is not accepted by %(host)s. Mail that uses it waits for a new one."),
        who=SETTINGS,
        steps=(
            CHECK_LOGIN,
            Step(N_("Ask the provider whether programs outside may sign in with this mailbox.")),
            TEST,
        ),
    )
    yield Explanation(
        key="login-needed",
        title=N_("The server wants a sign-in"),
        cause=N_("Only those who sign in may send through %(host)s, and Authentication is off."),
        who=SETTINGS,
        steps=(
            Step(
                N_("Switch Authentication on, fill in username and password, and save."),
                Action.OPEN_CONNECTION,
            ),
            TEST,
        ),
    )
    yield Explanation(
        key="slow-down",
        title=N_("The server asks to slow down"),
        cause=N_("No more mail is taken by %(host)s for now. Nothing is lost: the mail waits."),
        who=at_a_server(
            you=N_("can lower the rate in the settings, if it happens often."),
            provider=N_("can tell you its limits, and raise them."),
        ),
        steps=(
            WAIT,
            Step(
                N_("If it happens often, set fewer mails a minute or an hour for the connection."),
                Action.OPEN_CONNECTION,
            ),
        ),
        retry=True,
    )
    yield Explanation(
        key="no-answer",
        title=N_("The server did not answer in time"),
        cause=N_(
            "There was no answer from %(host)s for too long. Nothing was sent; the mail is kept."
        ),
        who=NETWORK,
        steps=(CHECK_HOST, FIREWALL, RETRIES),
        retry=True,
    )
    yield Explanation(
        key="connection-lost",
        title=N_("The connection broke off"),
        cause=N_(
            "The connection to %(host)s ended before the mail was handed over. The mail is kept."
        ),
        who=NETWORK,
        steps=(CHECK_HOST, RETRIES),
        retry=True,
    )
    yield Explanation(
        key="answer-lost",
        title=N_("The answer to the mail was lost"),
        cause=N_("The whole mail had gone out when the connection broke. It may have arrived."),
        who=at_a_server(
            you=N_("can ask the recipient whether it came."),
            provider=N_("can look it up in the log of its server."),
        ),
        steps=(
            Step(N_("Ask the recipient, or look into the sent mail of the mailbox.")),
            AS_THE_SITE_WISHES,
            TEST,
        ),
    )
    yield Explanation(
        key="no-mail-server",
        title=N_("What answered is not a mail server"),
        cause=N_("Something answers at %(host)s on port %(port)s, but not as a mail server does."),
        who=SETTINGS,
        steps=(CHECK_HOST, FIREWALL, TEST),
    )


def server_mails() -> Iterator[Explanation]:
    yield Explanation(
        key="not-supported",
        title=N_("The server cannot do what this mail needs"),
        cause=N_(
            "For example: %(host)s does not take addresses with letters beyond plain English, and "
            "the mail has one."
        ),
        who=at_a_server(
            you=N_("can use another address, or another connection."),
            provider=N_("can say whether the server is to learn it."),
        ),
        steps=(CORRECT_RECIPIENTS, OTHER_MAILER),
    )
    yield Explanation(
        key="sender-refused",
        title=N_("The server refused the sender"),
        cause=N_("This login may not send as %(from_email)s through %(host)s."),
        who=SETTINGS,
        steps=(
            Step(
                N_("Set From Email to the address of the login, and force it."),
                Action.OPEN_CONNECTION,
            ),
            Step(N_("Or ask the provider to allow %(from_email)s for this login.")),
            TEST,
        ),
    )
    yield Explanation(
        key="recipient-refused",
        title=N_("The server refused the recipient"),
        cause=N_("The address does not exist there, or the server does not take mail for it."),
        who=SITE_AT_SERVER,
        steps=(
            CORRECT_RECIPIENTS,
            Step(N_("If the address is right, ask the recipient to read the server’s words.")),
        ),
    )
    yield Explanation(
        key="too-many-recipients",
        title=N_("Too many recipients at once"),
        cause=N_(
            "Not that many recipients of one mail are taken by %(host)s at once. The rest follows."
        ),
        who=at_a_server(provider=N_("can tell you its limits, and raise them.")),
        steps=(
            WAIT,
            Step(N_("For newsletters, send one mail per recipient, or use a bulk mail service.")),
        ),
        retry=True,
    )
    yield Explanation(
        key="content-refused",
        title=N_("The server refused this mail as it is"),
        cause=N_("Often a filter took it for spam, or an attachment is of a kind not allowed."),
        who=SITE_AT_SERVER,
        steps=(
            Step(N_("Send a plain test mail; if it goes through, the settings are good.")),
            Step(
                N_(
                    "Check links and attachments of the mail, and SPF, DKIM and DMARC of the "
                    "domain."
                )
            ),
            OTHER_MAILER,
        ),
    )
    yield Explanation(
        key="too-large",
        title=N_("The mail is larger than the server takes"),
        cause=N_("This mail with its attachments is over the limit that %(host)s names."),
        who=SITE_AT_SERVER,
        steps=(
            Step(N_("Make the mail smaller, for example with a link in place of the file.")),
            OTHER_MAILER,
        ),
    )
    yield Explanation(
        key="bulk-refused",
        title=N_("The server refuses bulk mail"),
        cause=N_(
            "The mail looks like unsolicited bulk mail to %(host)s, which does not pass it on."
        ),
        who=at_a_server(
            you=N_("can send to fewer recipients at a time."),
            provider=N_("can tell you its limits, and allow the site."),
        ),
        steps=(
            Step(N_("Send to fewer recipients, and only to those who asked for it.")),
            Step(N_("Ask the provider about its limits and whether it blocks this server.")),
            OTHER_MAILER,
        ),
    )
    yield Explanation(
        key="microsoft-unknown",
        title=N_("An issue was detected"),
        cause=N_(
            "Microsoft refused, for a reason that is not in our list. Its own words are above."
        ),
        who=at_microsoft(
            you=N_("can check the settings of the connection."),
            admin=N_("can look into the sign-in logs and the rules of the organization."),
            microsoft=N_("can say what its words mean; its support asks for the request id."),
        ),
        steps=(
            Step(
                N_("Check every value in the settings of the connection, and save."),
                Action.OPEN_CONNECTION,
            ),
            AUTHORIZE,
            TEST,
            Step(N_("If it stays, send the debug log with Microsoft’s code to support.")),
        ),
    )
    yield Explanation(
        key="unknown",
        title=N_("An issue was detected"),
        cause=N_(
            "The reason is not in our list. Likely are a wrong setting, a block by the network, or "
            "a refusal by the other side; its own words are above."
        ),
        who=at_a_server(
            you=N_("can check the settings of the connection."),
            operator=N_("can check the network and the firewall of the machine."),
            provider=N_("can say what its words mean."),
        ),
        steps=(
            Step(
                N_("Check every value in the settings of the connection, and save."),
                Action.OPEN_CONNECTION,
            ),
            TEST,
            Step(N_("If it stays, send the debug log to your provider.")),
            OTHER_MAILER,
        ),
    )
