"""The whole path: handed in by SMTP, stored, delivered by SMTP.

    python benchmarks/whole_path.py [--rounds 3] [--seconds 5] [--rate 20]

First as much as goes through: 10 sessions hand in 5 KB mails for some seconds while the delivery
worker empties the queue, and the rate is that of all mails until the last has arrived. Then at a
moderate rate, a connection for each mail as WordPress does: how long after the answer a mail has
arrived.
"""

import argparse
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

import load
from common import Bench, a_bench, a_mail
from hand_over import Wordpress
from load import Login
from machine import heading, median, percentile, say, table, verdict
from sinks import MARK, Sink, a_sink

SIZE = 5 * 1024
BAR_SECONDS = 10.0
PATIENCE = 120.0


@dataclass(frozen=True, kw_only=True)
class Path:
    """A running installation and where its mail arrives."""

    bench: Bench
    sink: Sink
    login: Login


@dataclass(frozen=True, kw_only=True)
class Through:
    """As much as went through."""

    accepted: float
    """Mails a second, while they were handed in."""
    delivered: float
    """Mails a second, until the last had arrived."""
    cpu_ms: float


def main() -> None:
    """Measure, print; exit 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of handing in, each round")
    parser.add_argument("--rate", type=float, default=20.0, help="mails a second, moderately")
    parser.add_argument("--moderate-seconds", type=float, default=20.0)
    wanted = parser.parse_args()
    heading(f"SMTP in to SMTP out, {SIZE // 1024} KB, SQLite, medians of {wanted.rounds} rounds")
    count = int(wanted.rate * wanted.moderate_seconds)
    with ExitStack() as stack:
        sink = stack.enter_context(a_sink(count))
        bench = stack.enter_context(a_bench())
        _, login = bench.a_site(sink=sink.port)
        path = Path(bench=bench, sink=sink, login=login)
        for part in ("submission", "deliver"):
            bench.start(part)
        bench.processes[0].wait_for_port(bench.submission)
        as_much_as_goes(path, 1.0)
        runs = []
        for number in range(wanted.rounds):
            say(f"round {number + 1} of {wanted.rounds}")
            runs.append(as_much_as_goes(path, wanted.seconds))
        say("at a moderate rate")
        delays = moderately(path, count, wanted.rate)
    table(
        ["", "median", "lowest", "highest"],
        [
            _row("accepted meanwhile, mails/s", [run.accepted for run in runs]),
            _row("in to delivered, mails/s", [run.delivered for run in runs]),
            _row("CPU ms a mail, both processes", [run.cpu_ms for run in runs]),
        ],
    )
    print(f"\nAt {wanted.rate:g} mails a second, from the answer to the arrival:")
    p50, p95 = median(delays), percentile(delays, 0.95)
    table(["ms", "p50", "p95", "most"], [["", p50 * 1000, p95 * 1000, max(delays) * 1000]])
    print()
    met = verdict(f"95 % arrive within {BAR_SECONDS:g} s", p95 <= BAR_SECONDS, f"{p95:.3f} s")
    sys.exit(0 if met else 1)


def _row(name: str, values: list[float]) -> list[object]:
    return [name, median(values), min(values), max(values)]


def as_much_as_goes(path: Path, seconds: float) -> Through:
    """Hand in at full speed, then wait for the rest to arrive."""
    before = path.sink.count
    cpu = _cpu(path)
    begin = time.monotonic()
    done = load.run(
        load.Load(
            address=path.bench.submission,
            mail=a_mail(SIZE),
            sessions=10,
            seconds=seconds,
            is_reused=True,
            login=path.login,
        )
    )
    _wait_for(path, before + done.mails)
    taken = time.monotonic() - begin
    return Through(
        accepted=done.rate,
        delivered=done.mails / taken,
        cpu_ms=(_cpu(path) - cpu) / done.mails * 1000,
    )


def moderately(path: Path, count: int, rate: float) -> list[float]:
    """Seconds from the answer to the arrival, for each mail."""
    before = path.sink.count
    program = Wordpress(path.bench.submission, path.login)
    answered = []
    begin = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        mail = MARK + str(number).encode() + b"\r\n" + a_mail(SIZE)
        program.send(mail.splitlines(keepends=True))
        answered.append(program.answered_at)
    _wait_for(path, before + count)
    return [
        max(0.0, arrived - at) for arrived, at in zip(path.sink.arrivals, answered, strict=True)
    ]


def _cpu(path: Path) -> float:
    return sum(process.cpu() for process in path.bench.processes)


def _wait_for(path: Path, count: int) -> None:
    until = time.monotonic() + PATIENCE
    while path.sink.count < count:
        if time.monotonic() > until:
            raise SystemExit(f"{count - path.sink.count} mails did not arrive")
        time.sleep(0.005)


if __name__ == "__main__":
    main()
