"""The forms of Settings > Email Log and of Settings > Misc. Fields keep what was typed as text, and
`sites.settings` says what is wrong with it.
"""

from collections.abc import Mapping

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from wtforms import BooleanField, Field, TextAreaField

from webapp.forms import Choice, Form, Radios, Text, choices, refuse
from webapp.sites.models import AfterUnclear, Mode, Site
from webapp.sites.settings import FOR_EVER, as_text, time_zones

CUSTOM = "custom"
NOT_KEPT = "0"

TIMES = (
    ("1", _l("1 day")),
    ("7", _l("1 week")),
    ("30", _l("1 month")),
    ("90", _l("3 months")),
    ("180", _l("6 months")),
    ("365", _l("1 year")),
)
OF_ITS_OWN = ((CUSTOM, _l("Custom, in days")),)
LIKE_THE_LOG = ((FOR_EVER, _l("As long as the log entry")),)


class RetentionForm(Form):
    """What is kept of the mail of a site, and for how long once it is over."""

    log_days = Choice(_l("Log entry"), (*TIMES, (FOR_EVER, _l("Forever")), *OF_ITS_OWN))
    log_days_custom = Text(_l("Days of the log entry"), limit=20)
    body_days = Choice(
        _l("Mail with attachments"),
        ((NOT_KEPT, _l("Not kept once it is over")), *TIMES, *LIKE_THE_LOG, *OF_ITS_OWN),
    )
    body_days_custom = Text(_l("Days of the mail"), limit=20)
    details_days = Choice(_l("Conversation with the remote"), (*TIMES, *LIKE_THE_LOG, *OF_ITS_OWN))
    details_days_custom = Text(_l("Days of the conversation"), limit=20)

    def texts(self) -> dict[str, str]:
        """What was chosen, as `set_site` takes it. Call it after `validate`."""
        return {name: self._text(name) for name in KEPT}

    def _text(self, name: str) -> str:
        chosen = self[name].data or ""
        if chosen != CUSTOM:
            return str(chosen)
        return (self[f"{name}_custom"].data or "").strip() or "?"  # empty would mean for ever

    def show(self, errors: Mapping[str, str]) -> None:
        """Put what was found at the fields where it was typed."""
        for name, sentence in errors.items():
            typed = f"{name}_custom" if self[name].data == CUSTOM else name
            refuse(self, typed, _(sentence))


KEPT = ("log_days", "body_days", "details_days")


def retention_form(site: Site) -> RetentionForm:
    """Filled with what was sent if anything was, else as it is stored."""
    stored: dict[str, str] = {}
    for name in KEPT:
        text = as_text(getattr(site, name), empty=FOR_EVER)
        known = {value for value, _label in TIMES} | {FOR_EVER}
        if name == "body_days":
            known.add(NOT_KEPT)
        is_known = text in known
        stored[name] = text if is_known else CUSTOM
        stored[f"{name}_custom"] = "" if is_known else text
    return RetentionForm(data=stored)


MODES = (
    (Mode.LIVE.value, _l("Live")),
    (Mode.HOLD.value, _l("Hold")),
    (Mode.REDIRECT_TO.value, _l("Redirect")),
    (Mode.DO_NOT_SEND.value, _l("Do not send")),
)
MEANING = {
    Mode.LIVE.value: _l(
        "Mail leaves as it comes in. What is held stays until somebody releases it."
    ),
    Mode.HOLD.value: _l(
        "Mail is accepted and kept until somebody releases it on the page of the queue."
    ),
    Mode.REDIRECT_TO.value: _l(
        "All mail goes to the one address below and to nobody else: for copies of a site."
    ),
    Mode.DO_NOT_SEND.value: _l(
        "Mail is accepted and never sent; the log shows it as Not sent. What waits ends so, too."
    ),
}


class MiscForm(Form):
    """What a site is, what happens to its mail, and how patient the queue is with it."""

    name = Text(_l("Name"), limit=400)
    url = Text(
        _l("Address"), description=_l("Where the site is found. It may stay empty."), limit=1000
    )
    admin_email = Text(_l("Admin Address"), description=_l("Who looks after the site."), limit=400)
    time_zone = Choice(
        _l("Time Zone"), (), description=_l("The pages of this site show times in it.")
    )
    mode = Radios(_l("Mode"), MODES)
    redirect_to = Text(
        _l("Redirect to"),
        description=_l("Who gets all mail in the mode Redirect. It is kept for the other modes."),
        limit=400,
    )
    retry_hours = Text(
        _l("Hours to retry"),
        description=_l(
            "How long a mail is tried again before it is given up. Counts for mail handed in from "
            "now on."
        ),
        limit=40,
    )
    patience_minutes = Text(
        _l("Minutes until a backup"),
        description=_l(
            "How long a mail may wait for its connection before the first backup takes it. 0: at "
            "once."
        ),
        limit=40,
    )
    after_unclear = Radios(
        _l("When the answer is lost"),
        (
            (AfterUnclear.RATHER_TWICE.value, _l("Rather twice: send it once more")),
            (AfterUnclear.NEVER_TWICE.value, _l("Never twice: leave it as unclear")),
        ),
        description=_l(
            "For mail that went out whole, when the answer never came and nobody can look whether "
            "it arrived."
        ),
    )
    per_minute = Text(_l("Mails a minute"), limit=40)
    per_hour = Text(_l("Mails an hour"), limit=40)
    per_day = Text(_l("Mails a day"), limit=40)
    placeholder_emails = TextAreaField(
        _l("Placeholder addresses"),
        description=_l(
            "Senders that programs set when nobody told them one, such as wordpress@example.org or "
            "www-data@*. The From Email of the connection takes their place, forced or not."
        ),
    )
    placeholder_names = TextAreaField(
        _l("Placeholder names"),
        description=_l("The same for names, one a line."),
    )
    hide_errors = BooleanField(
        _l("Hide Email Delivery Errors"),
        description=_l(
            "On: the pages of this site do not tell you when its last mail failed. For you alone, "
            "and best kept for copies of a site: alerts go on all the same."
        ),
    )

    def texts(self) -> dict[str, str]:
        """What was typed, as `set_site` takes it."""
        return {name: str(self[name].data or "") for name in MISC}

    def show(self, errors: Mapping[str, str]) -> None:
        """Put what was found at the fields."""
        for name, sentence in errors.items():
            if not self[name].errors:
                refuse(self, name, _(sentence))

    def limits(self) -> list[Field]:
        """The fields of the rate limits."""
        return [self.per_minute, self.per_hour, self.per_day]


MISC = (
    "name",
    "url",
    "admin_email",
    "time_zone",
    "mode",
    "redirect_to",
    "retry_hours",
    "patience_minutes",
    "after_unclear",
    "per_minute",
    "per_hour",
    "per_day",
    "placeholder_emails",
    "placeholder_names",
)


def misc_form(site: Site, *, hides_errors: bool) -> MiscForm:
    """Filled with what was sent if anything was, else as it is stored."""
    stored: dict[str, object] = {name: as_text(getattr(site, name)) for name in MISC}
    form = MiscForm(data={**stored, "hide_errors": hides_errors})
    form.time_zone.choices = choices((name, name) for name in time_zones())
    return form


class DeleteForm(Form):
    """The name of the site, to be sure."""

    sure_name = Text(_l("Name of the site"), limit=400)
