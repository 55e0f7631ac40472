"""What the sign-in pages and the token endpoint share: Microsoft's errors, and scopes."""

import uuid
from dataclasses import dataclass

from webapp.sandbox.tokens import OPENID
from webapp.sandbox.world import World


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One of Microsoft's errors: the word of OAuth, the number, and words of the same sense."""

    error: str
    number: int
    text: str
    status: int = 400
    suberror: str = ""
    subcode: str = ""
    """As `error_subcode` in redirects."""

    def describe(self, world: World) -> str:
        """The text as it is sent, with the ids that support asks for."""
        when = f"{world.now():%Y-%m-%d %H:%M:%SZ}"
        return (
            f"AADSTS{self.number}: {self.text} Trace ID: {uuid.uuid4()}"
            f" Correlation ID: {uuid.uuid4()} Timestamp: {when}"
        )


class Refused(Exception):
    """The request ends with this problem."""

    def __init__(self, problem: Problem, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(problem.text)
        self.problem = problem
        self.headers = headers


def missing(parameter: str) -> Problem:
    """A parameter is not there."""
    text = f"The request body must contain the following parameter: '{parameter}'."
    return Problem(error="invalid_request", number=900144, text=text)


def no_such_tenant(segment: str) -> Problem:
    """The first part of the path is not a tenant here."""
    text = (
        f"Tenant '{segment}' not found. Check to make sure you have the correct tenant ID and are "
        "signing into the correct cloud."
    )
    return Problem(error="invalid_request", number=90002, text=text)


def no_such_application(client_id: str, segment: str) -> Problem:
    """Nobody registered it, or in another tenant."""
    text = f"Application with identifier '{client_id}' was not found in the directory '{segment}'."
    return Problem(error="unauthorized_client", number=700016, text=text)


def scopes_in(world: World, text: str) -> tuple[str, ...]:
    """The scopes of a request, as written; raises Refused for one of another service or cloud."""
    scopes = tuple(dict.fromkeys(text.split()))
    for scope in scopes:
        if "/" in scope and not scope.startswith(f"{world.addresses.graph}/"):
            said = (
                "The provided value for the input parameter 'scope' is not valid. The scope "
                f"{scope} does not exist."
            )
            raise Refused(Problem(error="invalid_scope", number=70011, text=said))
    return scopes


def permission(scope: str) -> str:
    """The bare name of a scope: `Mail.Send`."""
    return scope.rpartition("/")[2]


def permissions(scopes: tuple[str, ...]) -> frozenset[str]:
    """What a list of scopes permits at Graph."""
    return frozenset(permission(scope) for scope in scopes) - OPENID
