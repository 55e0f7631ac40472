"""Why a link was not begun or not finished, in words for the page that people come back to.

The provider's code and its words always stand in the notice, whole, under what they mean, who must
act, and what comes next.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import requests
from authlib.common.errors import AuthlibBaseError
from flask_babel import gettext as _
from joserfc.errors import JoseError

from webapp.explain.match import LINK_NO_CODE, LINK_STATE, explain, explain_link
from webapp.explain.model import WHO_LABELS, Action, Explanation, values_for
from webapp.explain.parts import Keeper, fitted
from webapp.mailers.errors import DeliveryError, Misconfigured
from webapp.microsoft.codes import find_code, look_up
from webapp.providers import GOOGLE, MICROSOFT, PROVIDERS, Provider

_MICROSOFT = PROVIDERS[MICROSOFT]
_OFFERED = frozenset({Action.ASK_ADMIN, Action.COPY_ADMIN_MESSAGE})

ABOUT_THE_APP = frozenset({"secret-wrong", "secret-expired", "app-login-refused"})
"""What a code cannot be exchanged for, and no token be renewed for either."""

MAX_WORDS = 1_200
"""Of a provider's words in a notice, which travels in a cookie. They are a third of that."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What went wrong, in sentences that are translated already."""

    strong: str
    text: str
    ask_admin: bool = False
    """Whether an administrator's consent would help."""
    words: str = ""
    """What the provider said."""
    found: Explanation | None = None
    values: Mapping[str, object] = field(default_factory=dict)

    @property
    def about_app(self) -> bool:
        """Whether something is to be changed in the app registration."""
        return self.found is not None and any(
            step.action in {Action.OPEN_APP, Action.OPEN_CONNECTION} for step in self.found.steps
        )

    def told_to(self, keeper: Keeper) -> "Notice":
        """The same in the words for whoever keeps the app registration."""
        if self.found is None:
            return self
        return replace(self, text=_sentences(fitted(self.found, keeper=keeper), self.values))


@dataclass(frozen=True, kw_only=True)
class AppRefused:
    """The provider refuses the registration itself, whoever signs in by it."""

    code: str
    words: str


class NotLinked(Exception):
    """The link cannot be begun or finished; no link was changed.

    `app_refused` tells of a registration that the token endpoint does not take.
    """

    def __init__(self, notice: Notice, app_refused: AppRefused | None = None) -> None:
        super().__init__(notice.strong)
        self.notice = notice
        self.app_refused = app_refused


def refused(strong: str, text: str, *, ask_admin: bool = False) -> NotLinked:
    """A refusal of our own."""
    return NotLinked(Notice(strong=strong, text=text, ask_admin=ask_admin))


def explained(
    known: Mapping[str, object], error: str, description: str, provider: Provider = _MICROSOFT
) -> NotLinked:
    """A refusal of a provider's sign-in service; `known` fills in the explanation."""
    found = explain_link(error, description, provider.mailer)
    return NotLinked(notice_of(found, known, error, description))


def failed(
    known: Mapping[str, object], error: DeliveryError, provider: Provider = _MICROSOFT
) -> NotLinked:
    """A call with the new tokens failed."""
    found = explain(
        mailer=provider.mailer, code=error.code, words=error.words, cause=error.cause_code
    )
    refused_app = None
    if isinstance(error, Misconfigured):
        refused_app = AppRefused(code=error.code, words=error.words)
    return NotLinked(notice_of(found, known, error.code, error.words), refused_app)


def _by_token_endpoint(
    known: Mapping[str, object], error: str, description: str, provider: Provider
) -> NotLinked:
    """A refusal that is no page's, which anybody could have changed on the way, but an answer."""
    made = explained(known, error, description, provider)
    if provider.slug == GOOGLE:
        code, about_app = error, _is_about_googles_app(made)
    else:
        code = find_code(description) or error
        about = look_up(code) or look_up(error)
        about_app = about is not None and about.about in ABOUT_THE_APP
    if about_app:
        made.app_refused = AppRefused(code=code, words=clean(description or error, MAX_WORDS))
    return made


def _is_about_googles_app(made: NotLinked) -> bool:
    return made.notice.found is not None and made.notice.found.key == "google-app-refused"


def notice_of(
    found: Explanation, known: Mapping[str, object], error: str = "", description: str = ""
) -> Notice:
    """Cause, who must act, the next step, and what the provider said."""
    values = values_for(known, _)
    said = clean(": ".join(filter(None, (error, description))), MAX_WORDS)
    is_ours = not description and error in {LINK_NO_CODE, LINK_STATE}
    return Notice(
        strong=_("%(title)s.", title=_(found.title, **values)),
        text=_sentences(found, values),
        ask_admin=any(step.action is Action.ASK_ADMIN for step in found.steps),
        words="" if is_ours else said,
        found=found,
        values=values,
    )


def _sentences(found: Explanation, values: Mapping[str, object]) -> str:
    parts = [_(found.cause, **values)]
    if found.retry:  # mail is tried again by itself, a person's sign-in is not
        parts.append(_("Nothing was changed. Try again in a few minutes."))
    else:
        parts += [
            f"{_(WHO_LABELS[part.who])} {_(part.sentence, **values)}"
            for part in found.who
            if part.on
        ]
        # The administrator's link is offered by the notice itself.
        parts += [_(step.text, **values) for step in found.steps[:1] if step.action not in _OFFERED]
    return " ".join(parts)


def clean(text: str, most: int) -> str:
    """Fit to be stored and shown: one line, no controls."""
    line = "".join(sign if sign.isprintable() else " " for sign in text)
    return " ".join(line.split())[:most]


@contextmanager
def told(host: str, known: Mapping[str, object], provider: Provider = _MICROSOFT) -> Iterator[None]:
    """Whatever Authlib, the ID token or the network raises, as a NotLinked."""
    try:
        yield
    except requests.HTTPError as error:
        raise _answered(host, known, error, provider) from error
    except requests.JSONDecodeError as error:
        raise _unreadable(host) from error
    except requests.RequestException as error:
        raise _unreachable(host, error, provider) from error
    except AuthlibBaseError as error:
        said = str(error.error or ""), str(error.description or "")
        raise _by_token_endpoint(known, *said, provider) from error
    except JoseError as error:
        raise refused(
            _("The security check failed."),
            _(
                "%(provider)s’s answer does not prove who signed in (%(reason)s). Nothing was "
                "linked. Try again; if it stays, whoever runs this Postroom should check the "
                "clock of the machine and the cloud of the app registration.",
                provider=provider.name,
                reason=clean(str(error), 200),
            ),
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        # What Authlib does with an answer in a form that the protocol does not have.
        raise _unreadable(host) from error


def _unreadable(host: str) -> NotLinked:
    return refused(
        _("The answer of %(host)s cannot be read.", host=host),
        _("Nothing was changed. Check the cloud of the app registration, then try again."),
    )


def _unreachable(host: str, error: requests.RequestException, provider: Provider) -> NotLinked:
    if isinstance(error, requests.exceptions.SSLError):
        reason = _("its certificate is not trusted here")
    elif isinstance(error, requests.exceptions.ProxyError):
        reason = _("the proxy lets nothing through")
    elif isinstance(error, requests.exceptions.Timeout):
        reason = _("no answer came in time")
    else:
        reason = _("no connection")
    return refused(
        _("%(host)s cannot be reached.", host=host),
        _(
            "This server asked %(provider)s’s sign-in service: %(reason)s. Nothing was changed. It "
            "is tried again when you press the button again.",
            provider=provider.name,
            reason=reason,
        ),
    )


def _answered(
    host: str, known: Mapping[str, object], error: requests.HTTPError, provider: Provider
) -> NotLinked:
    """The sign-in service answered with an error, in its own words where it has any."""
    said: object = None
    with suppress(ValueError):
        said = error.response.json()
    if isinstance(said, dict) and said.get("error"):
        words = str(said.get("error_description") or "")
        return _by_token_endpoint(known, str(said["error"]), words, provider)
    return refused(
        _("%(host)s answers with an error.", host=host),
        _(
            "It answered with status %(status)s. Nothing was changed. Try again in a few minutes.",
            status=error.response.status_code,
        ),
    )
