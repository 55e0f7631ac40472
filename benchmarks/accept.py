"""Durable accepts a second, beside Postfix.

    python benchmarks/accept.py [--full] [--rounds 3] [--seconds 4] [--rows N]

5 KB mails over SMTP from 10 sessions (with --full also 1 and 50), many on one connection and a
connection for each, as PHP does. The same load generator for all servers; ours also check a login.
Each server answers only what is on disk: SQLite with synchronous=FULL, PostgreSQL with fsync, a
Postfix with its own queue files and the discard transport. Nothing is delivered meanwhile by ours;
with --full there is a Postfix, too, that only queues. Servers take turns, so that a busy machine
hits all alike; the figures are medians, and so is the ratio of each round. --rows puts mails into
the SQLite ledger first: the rate should not depend on them.
"""

import argparse
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field

import load
from common import a_bench, a_mail, a_postgres
from load import Login
from machine import Process, heading, median, say, table, verdict
from postfix import a_postfix, by_smtp_source, why_not

BAR = 1.2
SIZE = 5 * 1024
SQLITE, POSTGRESQL = "postroom, SQLite", "postroom, PostgreSQL"
POSTFIX, HELD = "Postfix, discard", "Postfix, queue held"
KINDS = {True: "reused", False: "new"}

Case = tuple[bool, int]
"""Whether connections are reused, and how many sessions."""


@dataclass
class Server:
    """Something that takes mail, and what was measured."""

    name: str
    address: tuple[str, int]
    process: Process
    login: Login | None = None
    rates: dict[Case, list[float]] = field(default_factory=dict)
    cpu_ms: dict[Case, list[float]] = field(default_factory=dict)
    load_shares: dict[Case, list[float]] = field(default_factory=dict)

    def measure(self, case: Case, seconds: float, mail: bytes) -> None:
        """One run; the processor time is that of all its processes."""
        before = self.process.cpu()
        done = load.run(
            load.Load(
                address=self.address,
                mail=mail,
                sessions=case[1],
                seconds=seconds,
                is_reused=case[0],
                login=self.login,
            )
        )
        spent = self.process.cpu() - before
        self.rates.setdefault(case, []).append(done.rate)
        self.cpu_ms.setdefault(case, []).append(spent / done.mails * 1000)
        self.load_shares.setdefault(case, []).append(done.cpu_share)

    def forget(self) -> None:
        """After warming up."""
        for figures in (self.rates, self.cpu_ms, self.load_shares):
            figures.clear()


def main() -> None:
    """Measure, print; exit 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="1 and 50 sessions, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rows", type=int, default=0, help="mails in the ledger before")
    parser.add_argument("--no-postgresql", action="store_true")
    wanted = parser.parse_args()
    heading(f"Durable accepts, {SIZE // 1024} KB, medians of {wanted.rounds} rounds")
    cases = [(reused, n) for reused in KINDS for n in ((1, 10, 50) if wanted.full else (10,))]
    with ExitStack() as stack:
        servers = _servers(
            stack,
            rows=wanted.rows,
            with_postgresql=not wanted.no_postgresql,
            with_held=wanted.full,
        )
        mail = a_mail(SIZE)
        for server in servers:
            server.measure((True, 10), 1.0, mail)
            server.forget()
        for number in range(wanted.rounds):
            say(f"round {number + 1} of {wanted.rounds}")
            for case in cases:
                for server in servers:
                    server.measure(case, wanted.seconds, mail)
        _print_rates(servers, cases)
        _print_smtp_source(servers, cases, wanted.seconds)
        met = _judge(servers, cases)
    sys.exit(0 if met else 1)


def _servers(
    stack: ExitStack, *, rows: int, with_postgresql: bool, with_held: bool
) -> list[Server]:
    servers = [_ours(stack, SQLITE, "", rows)]
    if with_postgresql:
        url = stack.enter_context(a_postgres())
        if url is None:
            print("PostgreSQL is not here: left out")
        else:
            servers.append(_ours(stack, POSTGRESQL, url))
    reason = why_not()
    if reason:
        print(reason)
        return servers
    for name in (POSTFIX, HELD) if with_held else (POSTFIX,):
        postfix = stack.enter_context(a_postfix(is_held=name == HELD))
        servers.append(Server(name, postfix.address, postfix.process))
    print(f"beside Postfix {postfix.version}")
    return servers


def _ours(stack: ExitStack, name: str, url: str, rows: int = 0) -> Server:
    bench = stack.enter_context(a_bench(url))
    site_id, login = bench.a_site()
    if rows:
        say(f"filling the ledger with {rows:,} mails")
        bench.fill(site_id, rows, a_mail(1024))
        print(f"{rows:,} mails in the SQLite ledger before")
    process = bench.start("submission")
    process.wait_for_port(bench.submission)
    return Server(name, bench.submission, process, login)


def _print_rates(servers: list[Server], cases: list[Case]) -> None:
    rows = [
        [
            server.name,
            KINDS[case[0]],
            case[1],
            median(server.rates[case]),
            min(server.rates[case]),
            max(server.rates[case]),
            median(server.cpu_ms[case]),
            f"{median(server.load_shares[case]):.0%}",
        ]
        for case in cases
        for server in servers
    ]
    names = ["server", "connection", "sessions", "mails/s", "lowest", "highest"]
    table([*names, "CPU ms a mail", "CPU of the load"], rows)
    print("CPU is that of the server's own processes (for PostgreSQL without the database server).")


def _print_smtp_source(servers: list[Server], cases: list[Case], seconds: float) -> None:
    """What Postfix's own generator says of Postfix, so that nobody has to trust ours."""
    for server in servers:
        if server.name != POSTFIX:
            continue
        for case in cases:
            mails = max(200, int(median(server.rates[case]) * seconds))
            found = by_smtp_source(
                server.address, sessions=case[1], mails=mails, size=SIZE, is_reused=case[0]
            )
            if found is not None:
                kind = f"{KINDS[case[0]]}, {case[1]} sessions"
                print(f"Postfix by smtp-source, {kind}: {found:,.0f} mails/s")


def _judge(servers: list[Server], cases: list[Case]) -> bool:
    print()
    by_name = {server.name: server for server in servers}
    postfix = by_name.get(POSTFIX)
    if postfix is None:
        print("not compared")
        return True
    met = True
    for case in cases:
        pairs = zip(by_name[SQLITE].rates[case], postfix.rates[case], strict=True)
        ratio = median([ours / theirs for ours, theirs in pairs])
        name = f"at least {BAR:g} times Postfix, {KINDS[case[0]]}, {case[1]} sessions"
        met &= verdict(name, ratio >= BAR, f"{ratio:.2f} times") or case[1] != 10
    return met


if __name__ == "__main__":
    main()
