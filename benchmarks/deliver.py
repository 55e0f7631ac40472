"""Deliveries a second, and whether a long queue slows them down.

    python benchmarks/deliver.py [--full] [--rounds 3] [--seconds 5]

A queue of 1,000 and one of 20,000 mails (with --full also 100,000) for one SMTP connection without
limits, at the usual concurrency; the receiver discards, in a process of its own. The rate is that
of the mails that arrived; the CPU is that of the delivery process, each mail recorded as sent.
"""

import argparse
import time

from common import Bench, a_bench, a_mail
from deliveries import PATIENCE, SIZE, Run, report
from machine import cpu_of, heading, say
from sinks import Sink, a_sink

WARM_UP = 200


def main() -> None:
    """Measure, print; exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="a queue of 100,000, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run, at most")
    wanted = parser.parse_args()
    depths = [1_000, 20_000, *([100_000] if wanted.full else [])]
    heading(f"Deliveries by SMTP, {SIZE // 1024} KB, SQLite, medians of {wanted.rounds} rounds")
    runs: dict[int, list[Run]] = {depth: [] for depth in depths}
    for number in range(wanted.rounds):
        say(f"round {number + 1} of {wanted.rounds}")
        for depth in depths:
            runs[depth].append(measure(depth, wanted.seconds))
    report(runs, "the sink")


def measure(depth: int, seconds: float) -> Run:
    """Fill a queue, then let it be delivered for a while or until it is empty."""
    with a_sink() as sink, a_bench() as bench:
        site_id, _ = bench.a_site(sink=sink.port)
        bench.fill(site_id, depth, a_mail(SIZE))
        return _deliver(bench, sink, depth, seconds)


def _deliver(bench: Bench, sink: Sink, depth: int, seconds: float) -> Run:
    process = bench.start("deliver")
    until = time.monotonic() + PATIENCE
    while sink.count < WARM_UP:  # connections are open, everything is warm
        if process.ended or time.monotonic() > until:
            raise SystemExit(f"deliver does not work:\n{process.log.read_text()[-2000:]}")
        time.sleep(0.002)
    count, cpu, sink_cpu = sink.count, process.cpu(), cpu_of(sink.pid)
    begin = time.monotonic()
    while sink.count < depth and time.monotonic() < begin + seconds:
        time.sleep(0.005)
    taken = time.monotonic() - begin
    done = sink.count - count
    return Run(
        rate=done / taken,
        cpu_ms=(process.cpu() - cpu) / done * 1000,
        remote_share=(cpu_of(sink.pid) - sink_cpu) / taken,
    )


if __name__ == "__main__":
    main()
