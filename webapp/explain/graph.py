"""What goes wrong when a mail is sent through Microsoft."""

from collections.abc import Iterator

from webapp.explain.model import Action, Explanation, Step
from webapp.explain.parts import (
    ALLOW_MICROSOFT,
    AS_THE_SITE_WISHES,
    ASK_CONSENT,
    AUTHORIZE,
    CHOOSE_CLOUD,
    COPY,
    CORRECT_RECIPIENTS,
    GOES_ON,
    HELLO_ACCESS,
    HELLO_BLOCKED,
    HELLO_CONSENT,
    HELLO_MAILBOX,
    HELLO_SEND_AS,
    OTHER_MAILER,
    POLICY,
    RETRIES,
    SITE,
    TEST,
    TEST_LATER,
    WAIT,
    at_microsoft,
)
from webapp.fields import N_


def mailboxes() -> Iterator[Explanation]:
    yield Explanation(
        key="send-as-denied",
        title=N_("Microsoft does not let %(account)s send as %(from_email)s"),
        cause=N_(
            "The mail says it comes from %(from_email)s, but the linked account is %(account)s, "
            "and that account has no right to send as the other address."
        ),
        who=at_microsoft(
            you=N_("can fix it now: send as the linked address."),
            admin=N_("can fix it too: grant “Send as” for %(from_email)s."),
        ),
        steps=(
            Step(
                N_(
                    "Quickest: send as the linked account. Answers still reach %(from_email)s, as "
                    "Reply-To."
                ),
                Action.SET_FROM,
            ),
            Step(
                N_(
                    "Or keep %(from_email)s: the admin opens Microsoft 365 admin center › Teams & "
                    "groups › Shared mailboxes › %(from_email)s › Send as permissions › Edit, and "
                    "adds %(account)s."
                ),
                Action.COPY_ADMIN_MESSAGE,
            ),
            TEST_LATER,
        ),
        admin_message=HELLO_SEND_AS,
    )
    yield Explanation(
        key="permission-missing",
        title=N_("The permission to send is missing"),
        cause=N_(
            "What was granted for %(account)s does not cover this mail: Mail.Send was not granted, "
            "or the mail goes out as another mailbox, or it is a large one."
        ),
        who=at_microsoft(
            you=N_("can put it right: re-authorize and accept all permissions."),
            admin=N_("can do the rest: approve the app, or give rights on a shared mailbox."),
        ),
        steps=(
            AUTHORIZE,
            Step(
                N_("If the mail is larger than 2 MB, send it with smaller attachments."),
            ),
            ASK_CONSENT,
            TEST_LATER,
        ),
        admin_message=HELLO_CONSENT,
    )
    yield Explanation(
        key="mailbox-policy",
        title=N_("Exchange does not let the app use this mailbox"),
        cause=N_(
            "An application access policy of %(tenant)s keeps the app out, or the mailbox lies on "
            "a server of the organization and not at Microsoft."
        ),
        who=POLICY,
        steps=(
            COPY,
            Step(
                N_(
                    "The admin lists the policies in Exchange Online PowerShell with "
                    "Get-ApplicationAccessPolicy, and adds %(account)s to the group that is "
                    "allowed."
                )
            ),
            TEST_LATER,
        ),
        admin_message=HELLO_ACCESS,
    )
    yield Explanation(
        key="no-mailbox",
        title=N_("The account has no mailbox at Microsoft"),
        cause=N_(
            "Exchange Online has no mailbox for %(account)s: no license for it, a "
            "guest account, a deleted mailbox, or one on a server of the "
            "organization."
        ),
        who=at_microsoft(
            you=N_("can link another account that has a mailbox."),
            admin=N_("can put it right: assign a license with Exchange Online."),
        ),
        steps=(
            COPY,
            Step(
                N_(
                    "The admin opens Microsoft 365 admin center › Users › Active users › "
                    "%(account)s › Licenses and apps, and assigns one with Exchange Online. A new "
                    "mailbox may need up to an hour."
                )
            ),
            Step(N_("Or link another account."), Action.REAUTHORISE),
            TEST_LATER,
        ),
        admin_message=HELLO_MAILBOX,
    )
    yield Explanation(
        key="mailbox-unknown",
        title=N_("There is no mailbox with this address"),
        cause=N_("Microsoft finds no mailbox for the address that the mail is sent from."),
        who=at_microsoft(
            you=N_("can correct the address in the settings of the connection."),
            admin=N_("can look up the right address."),
        ),
        steps=(
            Step(
                N_("Correct From Email, or set it to the linked account."),
                Action.SET_FROM,
            ),
            TEST,
        ),
    )
    yield Explanation(
        key="mailbox-full",
        title=N_("The mailbox is full"),
        cause=N_(
            "No room is left for the copy in Sent Items of %(account)s, so Microsoft takes no mail."
        ),
        who=at_microsoft(
            you=N_("can make room in the mailbox; waiting mail then leaves by itself."),
            admin=N_("can give the mailbox more room, or an archive."),
        ),
        steps=(
            Step(
                N_(
                    "Sign in at outlook.office.com as %(account)s, and empty Deleted Items and "
                    "Sent Items."
                )
            ),
            TEST,
        ),
        retry=True,
    )
    yield Explanation(
        key="mailbox-moving",
        title=N_("Microsoft is moving the mailbox"),
        cause=N_("The mailbox cannot be reached for a short time. The mail is kept."),
        who=GOES_ON,
        steps=(WAIT,),
        retry=True,
    )
    yield Explanation(
        key="daily-limit",
        title=N_("The mailbox has sent as much as Microsoft allows for now"),
        cause=N_(
            "Microsoft limits recipients per mailbox in 24 hours: 10,000 for work accounts, far "
            "fewer for personal ones. The rest waits here."
        ),
        who=at_microsoft(
            you=N_("can wait, or spread the mail over more mailboxes."),
            microsoft=N_("takes mail again as the last 24 hours move on."),
        ),
        steps=(
            WAIT,
            Step(
                N_("For a personal account, look into its inbox: Microsoft may ask to verify it.")
            ),
            Step(
                N_(
                    "For newsletters, add a connection to a bulk mail service, and route them "
                    "there."
                ),
                Action.OPEN_CONNECTION,
            ),
        ),
        retry=True,
    )
    yield Explanation(
        key="tenant-limit",
        title=N_("Your organization has reached its limit for outside recipients"),
        cause=N_(
            "Microsoft counts the outside recipients of all mailboxes of %(tenant)s in 24 hours."
        ),
        who=at_microsoft(
            admin=N_("can see in Exchange admin center › Reports › Mail flow who sends so much."),
            microsoft=N_("takes mail again as the last 24 hours move on."),
        ),
        steps=(
            Step(N_("Wait: the limit covers the last 24 hours, and falls by itself.")),
            Step(N_("For large mailings, use a bulk mail service.")),
        ),
    )
    yield Explanation(
        key="outbound-blocked",
        title=N_("Microsoft blocks outgoing mail of this sender"),
        cause=N_(
            "The mailbox or the whole organization was blocked by the rules against outgoing spam, "
            "or the organization is new and not trusted yet."
        ),
        who=at_microsoft(
            you=N_("can check that no site sends unwanted mail."),
            admin=N_("can unblock the mailbox in the Microsoft Defender portal."),
            microsoft=N_("has to lift it, where the whole organization is blocked."),
        ),
        steps=(
            COPY,
            Step(
                N_(
                    "The admin opens Microsoft Defender portal › Email & collaboration › Review › "
                    "Restricted entities, and removes %(account)s. It may take up to an hour."
                )
            ),
            TEST_LATER,
        ),
        admin_message=HELLO_BLOCKED,
    )


def mails() -> Iterator[Explanation]:
    yield Explanation(
        key="recipients-invalid",
        title=N_("An address of a recipient is not valid"),
        cause=N_("Microsoft found no recipient, or one that is not a mail address."),
        who=SITE,
        steps=(CORRECT_RECIPIENTS,),
    )
    yield Explanation(
        key="mail-too-large",
        title=N_("The mail is too large for Microsoft"),
        cause=N_(
            "Postroom hands over mails of up to 2 MB, and no mail may be larger than %(limit)s."
        ),
        who=at_microsoft(
            you=N_("can make the mail smaller."),
            admin=N_("can raise the limit of the mailbox, up to 150 MB."),
        ),
        steps=(
            Step(N_("Make the mail smaller, for example with a link in place of the file.")),
            OTHER_MAILER,
        ),
    )
    yield Explanation(
        key="mail-unreadable",
        title=N_("Microsoft cannot read this mail"),
        cause=N_(
            "The mail is not built as Microsoft expects: a header or a part of it is damaged."
        ),
        who=SITE,
        steps=(
            Step(N_("Send a plain test mail; if it goes through, the settings are good.")),
            Step(
                N_("Update the program or extension that builds the mail, and send it once more.")
            ),
            OTHER_MAILER,
        ),
    )
    yield Explanation(
        key="malware",
        title=N_("Microsoft found malware in the mail"),
        cause=N_("An attachment or a link was recognized as dangerous, so the mail was refused."),
        who=SITE,
        steps=(
            Step(N_("Check the site and the file with a virus scanner, and take the file out.")),
            Step(N_("Send the mail once more without it.")),
        ),
    )
    yield Explanation(
        key="graph-request",
        title=N_("Microsoft refused the request for this mail"),
        cause=N_(
            "Something about this one mail does not suit Microsoft. Other mail is not touched."
        ),
        who=at_microsoft(you=N_("can look at Microsoft’s words and change the mail.")),
        steps=(
            TEST,
            OTHER_MAILER,
            Step(N_("If it stays, send the debug log with Microsoft’s code to support.")),
        ),
    )
    yield Explanation(
        key="graph-address",
        title=N_("The Graph address does not exist"),
        cause=N_("The chosen cloud and the address for sending do not fit together."),
        who=at_microsoft(
            you=N_("can choose the right Microsoft cloud."),
            operator=N_("can check the addresses of a cloud defined for this installation."),
        ),
        steps=(CHOOSE_CLOUD, TEST),
    )
    yield Explanation(
        key="throttled",
        title=N_("Microsoft asks to slow down"),
        cause=N_(
            "Too many calls at a time or in ten minutes for this mailbox. Nothing is lost: the "
            "mail waits, and sending slows down by itself."
        ),
        who=at_microsoft(
            you=N_("can lower the rate in the settings, if it happens often."),
            microsoft=N_("takes mail again after the pause it asked for."),
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
        key="graph-busy",
        title=N_("Microsoft is busy or in maintenance"),
        cause=N_("The service could not take the mail just now. It is kept and tried again."),
        who=GOES_ON,
        steps=(
            WAIT,
            Step(N_("If it lasts, look at status.cloud.microsoft.")),
        ),
        retry=True,
    )
    yield Explanation(
        key="answer-unclear",
        title=N_("Microsoft’s answer does not say whether the mail went out"),
        cause=N_(
            "The mail was handed over, then Microsoft reported a fault or gave no answer. It may "
            "have been sent all the same."
        ),
        who=at_microsoft(
            you=N_("can look into Sent Items of %(account)s."),
            microsoft=N_("has to recover; such faults are short."),
        ),
        steps=(
            Step(N_("Look into Sent Items of %(account)s, or ask the recipient.")),
            AS_THE_SITE_WISHES,
            TEST,
        ),
    )
    yield Explanation(
        key="microsoft-unreachable",
        title=N_("This server cannot reach Microsoft"),
        cause=N_("No connection came about, so nothing was sent. The mail is kept."),
        who=at_microsoft(
            operator=N_("can check network, name service, firewall and proxy of the machine."),
            microsoft=N_("has to recover, if others cannot reach it either."),
        ),
        steps=(
            ALLOW_MICROSOFT,
            Step(N_("If others are affected too, look at status.cloud.microsoft.")),
            RETRIES,
        ),
        retry=True,
    )
    yield Explanation(
        key="microsoft-tls",
        title=N_("The encrypted connection to Microsoft did not come about"),
        cause=N_(
            "The certificate could not be verified. Often a proxy or a virus scanner opens "
            "encrypted traffic, or the clock of the server is wrong."
        ),
        who=at_microsoft(operator=N_("can put it right: trust the certificate of the proxy.")),
        steps=(
            Step(
                N_(
                    "Ask whoever runs this Postroom to name the proxy’s certificate in "
                    "POSTROOM_CA_BUNDLE, or to let Microsoft’s addresses pass unopened."
                )
            ),
            Step(N_("Check that date and time of this server are right to the minute.")),
            TEST,
        ),
    )
