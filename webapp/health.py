"""Pages for machines: does this process live, is the installation ready, what are the numbers."""

import secrets
from collections.abc import Iterable

from flask import Blueprint, Response, abort, jsonify, request
from flask.typing import ResponseReturnValue
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from webapp import web
from webapp.accounts.rights import Access
from webapp.ops import status
from webapp.protect import is_loopback_name
from webapp.web import requires

bp = Blueprint("health", __name__)

FORWARDING = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP")


@bp.get("/healthz")
@requires(Access.PUBLIC)
def alive() -> ResponseReturnValue:
    """This process answers; nothing else is asked."""
    return jsonify(alive=True)


@bp.get("/readyz")
@requires(Access.PUBLIC)
def ready() -> ResponseReturnValue:
    """Whether mail that is handed in is kept and goes out; 503 when not."""
    found = status.readiness(web.db())
    answer = jsonify(
        ready=found.ready,
        database=found.database,
        revision=found.revision,
        delivery=found.delivery,
    )
    return answer, 200 if found.ready else 503


@bp.get("/metrics")
@requires(Access.PUBLIC)
def metrics() -> ResponseReturnValue:
    """Numbers for Prometheus, for whoever holds the token or asks from this very machine."""
    if not may_read_metrics():
        abort(404)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FromDatabase())
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


def may_read_metrics() -> bool:
    """By the token where one is set; else only from loopback, and not by way of a proxy."""
    token = web.installation().settings.metrics_token
    if token is not None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return secrets.compare_digest(given.encode(), token.get_secret_value().encode())
    proxied = any(name in request.headers for name in FORWARDING)
    return not proxied and is_loopback_name(request.remote_addr or "")


class FromDatabase(Collector):
    """What is measured, read when it is asked for: every web process gives the same answer."""

    def collect(self) -> Iterable[Metric]:
        """The metrics with their samples."""
        families: dict[str, Metric] = {}
        with web.db().read() as session:
            for sample in status.samples(session, web.now()):
                kind = CounterMetricFamily if sample.is_counter else GaugeMetricFamily
                family = families.setdefault(
                    sample.name, kind(sample.name, sample.help, labels=list(sample.labels))
                )
                family.add_metric(list(sample.labels.values()), sample.value)  # type: ignore[attr-defined]
        return families.values()
