"""Faults that the sandbox can be told to show, and for whom, and how often."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from webapp.fields import N_
from webapp.sandbox.directory import Account


class Kind(StrEnum):
    """What goes wrong."""

    DENIED = "denied"
    ADMIN_NEEDED = "admin_needed"
    REDUCED_CONSENT = "reduced_consent"

    WRONG_SECRET = "wrong_secret"  # noqa: S105
    EXPIRED_SECRET = "expired_secret"  # noqa: S105
    WRONG_CLOUD = "wrong_cloud"
    REVOKED_GRANT = "revoked_grant"
    MFA_REQUIRED = "mfa_required"
    CONSENT_WITHDRAWN = "consent_withdrawn"
    ACCOUNT_DISABLED = "account_disabled"
    TOKEN_THROTTLED = "token_throttled"  # noqa: S105
    TOKEN_UNAVAILABLE = "token_unavailable"  # noqa: S105
    TOKEN_SLOW = "token_slow"  # noqa: S105

    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    SENT_504 = "sent_504"
    SERVER_ERROR = "server_error"
    DROPPED_BEFORE = "dropped_before"
    DROPPED_AFTER = "dropped_after"
    SEND_AS_DENIED = "send_as_denied"
    ACCESS_DENIED = "access_denied"
    QUOTA_EXCEEDED = "quota_exceeded"
    SIZE_EXCEEDED = "size_exceeded"
    INVALID_TOKEN = "invalid_token"  # noqa: S105
    NOT_SENT_200 = "not_sent_200"
    SLOW = "slow"
    SENT_ITEMS_EMPTY = "sent_items_empty_for"


NAMES = {
    Kind.DENIED: N_("Sign-in: consent denied"),
    Kind.ADMIN_NEEDED: N_("Sign-in: consent needs an administrator (AADSTS90094)"),
    Kind.REDUCED_CONSENT: N_("Tokens: granted without Mail.Send"),
    Kind.WRONG_SECRET: N_("Tokens: wrong secret (AADSTS7000215)"),
    Kind.EXPIRED_SECRET: N_("Tokens: expired secret (AADSTS7000222)"),
    Kind.WRONG_CLOUD: N_("Tokens: wrong cloud (AADSTS900382)"),
    Kind.REVOKED_GRANT: N_("Tokens: grant revoked (AADSTS50173)"),
    Kind.MFA_REQUIRED: N_("Tokens: multi-factor sign-in required (AADSTS50076)"),
    Kind.CONSENT_WITHDRAWN: N_("Tokens: consent withdrawn (AADSTS65001)"),
    Kind.ACCOUNT_DISABLED: N_("Sign-in and tokens: account disabled (AADSTS50057)"),
    Kind.TOKEN_THROTTLED: N_("Tokens: too many requests (429)"),
    Kind.TOKEN_UNAVAILABLE: N_("Tokens: unavailable (503)"),
    Kind.TOKEN_SLOW: N_("Tokens: slow answer"),
    Kind.THROTTLED: N_("Graph: too many requests (429)"),
    Kind.UNAVAILABLE: N_("Graph: busy (503)"),
    Kind.SENT_504: N_("Graph: mail is sent, answer is 504"),
    Kind.SERVER_ERROR: N_("Graph: internal error (500)"),
    Kind.DROPPED_BEFORE: N_("Graph: connection dropped, mail not sent"),
    Kind.DROPPED_AFTER: N_("Graph: connection dropped, mail sent"),
    Kind.SEND_AS_DENIED: N_("Graph: ErrorSendAsDenied (403)"),
    Kind.ACCESS_DENIED: N_("Graph: ErrorAccessDenied (403)"),
    Kind.QUOTA_EXCEEDED: N_("Graph: ErrorSubmissionQuotaExceeded (429)"),
    Kind.SIZE_EXCEEDED: N_("Graph: ErrorMessageSizeExceeded (400)"),
    Kind.INVALID_TOKEN: N_("Graph: access token refused (401)"),
    Kind.NOT_SENT_200: N_("Graph: answer is 200, mail is not sent"),
    Kind.SLOW: N_("Graph: slow answer"),
    Kind.SENT_ITEMS_EMPTY: N_("Graph: mail shows in Sent Items only after a while"),
}


@dataclass(kw_only=True)
class Fault:
    """One fault: for one account or all, for one application or all, for ever or `times` calls."""

    kind: Kind
    account: str = ""
    client_id: str = ""
    times: int | None = None
    retry_after: str = ""
    milliseconds: int = 0

    @classmethod
    def read(cls, given: dict[str, Any]) -> "Fault":
        """From a form or from JSON; raises ValueError with a sentence."""
        unknown = set(given) - {
            "kind",
            "account",
            "client_id",
            "times",
            "retry_after",
            "milliseconds",
        }
        if unknown:
            raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
        try:
            kind = Kind(str(given.get("kind")))
        except ValueError:
            raise ValueError(f"kind is one of: {', '.join(Kind)}") from None
        times = given.get("times")
        try:
            return cls(
                kind=kind,
                account=str(given.get("account") or "").strip(),
                client_id=str(given.get("client_id") or "").strip(),
                times=None if times in (None, "") else int(str(times)),
                retry_after=_one_line(given.get("retry_after")),
                milliseconds=int(str(given.get("milliseconds") or 0)),
            )
        except ValueError:
            raise ValueError("times and milliseconds are whole numbers") from None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def concerns(self, account: Account | None, client_id: str) -> bool:
        """Whether it is meant for this call."""
        if self.client_id and self.client_id != client_id:
            return False
        if not self.account:
            return True
        if account is None:
            return False
        wanted = self.account.lower()
        return wanted in account.addresses or wanted in {account.oid, account.graph_id}


def _one_line(value: object) -> str:
    text = "" if value is None else str(value).strip()
    return text if text.isprintable() else ""


class Faults:
    """What is planned now, in the order in which it was asked for."""

    def __init__(self) -> None:
        self._planned: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Plan one more; the same kind for the same account and application is replaced."""
        key = (fault.kind, fault.account, fault.client_id)
        kept = [f for f in self._planned if (f.kind, f.account, f.client_id) != key]
        self._planned = [*kept, fault]

    def clear(self) -> None:
        """Everything works again."""
        self._planned = []

    def all(self) -> tuple[Fault, ...]:
        """For the panel."""
        return tuple(self._planned)

    def take(
        self, kinds: Iterable[Kind], *, account: Account | None, client_id: str
    ) -> Fault | None:
        """The first planned fault of these kinds for this call; it counts as shown once."""
        if not self._planned:
            return None
        wanted = set(kinds)
        for fault in self._planned:
            if fault.kind in wanted and fault.concerns(account, client_id):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self._planned.remove(fault)
                return fault
        return None
