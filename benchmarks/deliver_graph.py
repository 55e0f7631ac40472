"""Deliveries a second through Microsoft Graph, and whether a long queue slows them down.

    python benchmarks/deliver_graph.py [--rounds 3] [--seconds 5]

Queues of 1,000 and of 100,000 mails for one linked mailbox without limits, at the usual
concurrency. The stand-in for Microsoft (`postroom sandbox`) runs in a process of its own, speaks
TLS and throws the mails away. The CPU is that of the delivery process, each mail recorded as sent;
the calls of the token endpoint are those of the delivery, not of the link.
"""

import argparse
import time

from common import Bench, a_bench, a_mail
from deliveries import PATIENCE, SIZE, Run, report
from machine import cpu_of, heading, say, verdict

from tests.rig.linking import link
from tests.rig.sandbox import Sandbox
from webapp.sites.models import Site

DEPTHS = (1_000, 100_000)
WARM_UP = 100


def main() -> None:
    """Measure, print; exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run, at most")
    wanted = parser.parse_args()
    heading(
        f"Deliveries through Graph, {SIZE // 1024} KB, SQLite, medians of {wanted.rounds} rounds"
    )
    runs: dict[int, list[Run]] = {depth: [] for depth in DEPTHS}
    for number in range(wanted.rounds):
        say(f"round {number + 1} of {wanted.rounds}")
        for depth in DEPTHS:
            runs[depth].append(measure(depth, wanted.seconds))
    calls = max(run.token_calls for found in runs.values() for run in found)
    report(
        runs,
        "the sandbox",
        [verdict("at most one call for a token in a run", calls <= 1, str(calls))],
    )


def measure(depth: int, seconds: float) -> Run:
    """Fill a queue, then let it be delivered for a while or until it is empty."""
    with Sandbox() as sandbox:
        names = {key.removeprefix("POSTROOM_").lower(): v for key, v in sandbox.environment.items()}
        with a_bench(**names) as bench:
            site_id, _ = bench.a_site()
            with bench.installation.db.read() as session:
                slug = session.get_one(Site, site_id).slug
            link(bench.installation, sandbox, slug)
            sandbox.discard()
            bench.fill(site_id, depth, a_mail(SIZE))
            return _deliver(bench, sandbox, depth, seconds)


def _deliver(bench: Bench, sandbox: Sandbox, depth: int, seconds: float) -> Run:
    tokens = sandbox.token_calls()
    process = bench.start("deliver")
    until = time.monotonic() + PATIENCE
    while arrived(sandbox) < WARM_UP:  # connections are open, everything is warm
        if process.ended or time.monotonic() > until:
            raise SystemExit(f"deliver does not work:\n{process.log.read_text()[-2000:]}")
        time.sleep(0.01)
    count, cpu, theirs = arrived(sandbox), process.cpu(), cpu_of(sandbox.process.pid)
    begin = time.monotonic()
    while arrived(sandbox) < depth and time.monotonic() < begin + seconds:
        time.sleep(0.05)
    taken, done = time.monotonic() - begin, arrived(sandbox) - count
    return Run(
        rate=done / taken,
        cpu_ms=(process.cpu() - cpu) / done * 1000,
        remote_share=(cpu_of(sandbox.process.pid) - theirs) / taken,
        token_calls=sandbox.token_calls() - tokens,
    )


def arrived(sandbox: Sandbox) -> int:
    """Mails that the stand-in took."""
    return sum(call["times"] for call in sandbox.calls()["graph"] if call["status"] in (202, "202"))


if __name__ == "__main__":
    main()
