"""The control API, for tests and benchmarks: JSON in, JSON out.

A POST must be `application/json`: a page of another site that is open in a browser cannot send
that here without being asked first, and nobody answers that question.
"""

import json
from typing import Any

from webapp.sandbox import panel
from webapp.sandbox.faults import Fault
from webapp.sandbox.wire import Answer, Request, as_json
from webapp.sandbox.world import World


def answer(world: World, request: Request) -> Answer:
    """Everything under /control."""
    try:
        return as_json(_act(world, request))
    except KeyError:
        return as_json({"error": "there is no such call"}, status=404)
    except ValueError as error:
        return as_json({"error": str(error)}, status=400)


def _act(world: World, request: Request) -> Any:
    match (request.method, *request.segments[1:]):
        case ("GET", "mails"):
            return [mail.as_dict() for mail in world.inbox.all()]
        case ("GET", "mails", "counts"):
            return dict(world.inbox.counts)
        case ("GET", "mails", number) if number.isdigit():
            return _source(world, int(number))
        case ("GET", "calls"):
            return world.calls.as_dict()
        case ("GET", "faults"):
            return [fault.as_dict() for fault in world.faults.all()]
        case ("DELETE", "faults"):
            world.faults.clear()
            return {}
        case ("POST", name):
            return _post(world, name, _read(request))
    raise KeyError(request.path)


def _source(world: World, number: int) -> dict[str, Any]:
    mail = world.inbox.find(number)
    if mail is None:
        raise KeyError(number)
    return {**mail.as_dict(), "raw": mail.parsed.raw.decode("utf-8", "replace")}


def _read(request: Request) -> Any:
    if request.media_type != "application/json":
        raise ValueError("send application/json")
    return json.loads(request.body or b"{}")


def _post(world: World, name: str, given: Any) -> Any:
    match name:
        case "faults":
            for one in given if isinstance(given, list) else [given]:
                world.faults.add(Fault.read(one))
            return [fault.as_dict() for fault in world.faults.all()]
        case "reset":
            world.reset()
        case "revoke":
            name = str(given.get("account", ""))
            if at_google := world.google.find(name):
                world.google.revoke(at_google)
            elif account := world.directory.find(name):
                world.revoke(account)
            else:
                raise ValueError("there is no such account")
        case "discard":
            world.inbox.discard = bool(given.get("on"))
        case "applications":
            panel.register(world, given)
        case "accounts":
            account = world.directory.add_account(str(given.get("address")), given.get("name", ""))
            world.save()
            return {"oid": account.oid, "tenant": account.tenant}
        case "expiry":
            world.tokens.lasts = int(given["seconds"])
        case _:
            raise KeyError(name)
    return {}
