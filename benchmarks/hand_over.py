"""How long one mail takes a program that sends as WordPress does.

    python benchmarks/hand_over.py [--count 200]

For each mail a new connection, EHLO, AUTH LOGIN, MAIL, RCPT, DATA with one write for each line,
QUIT: what PHPMailer does, TCP options as PHP leaves them. Measured in turn against the submission
process (SQLite, every mail on disk before it is answered) and a bare aiosmtpd that discards, with
TCP_QUICKACK set again after each read and without. Once with one mail right after the other, as a
newsletter sends them, and once with a pause before each, in which everything falls asleep.
"""

import argparse
import base64
import socket
import sys
import time
from contextlib import ExitStack

from common import a_bench, a_mail
from load import Login
from machine import heading, median, percentile, table, verdict
from sinks import an_aiosmtpd

OURS, QUICK, BARE = "postroom submission", "aiosmtpd, TCP_QUICKACK, discards", "aiosmtpd, discards"
BAR_MS = 1.0
BLOCK = 20
PACES = (("one after another", 0.0), ("one every 50 ms", 0.05))


class Wordpress:
    """A program that hands in one mail, line by line."""

    def __init__(self, address: tuple[str, int], login: Login) -> None:
        self._address = address
        self._login = login
        self.answered_at = 0.0
        """When the last mail was answered, by `time.monotonic`."""

    def send(self, lines: list[bytes]) -> float:
        """Hand in the mail; returns how many milliseconds it took."""
        begin = time.perf_counter()
        with socket.create_connection(self._address) as client:
            self._socket, self._replies = client, client.makefile("rb")
            self._expect(b"220")
            self._say(b"EHLO shop.example", b"250")
            self._say(b"AUTH LOGIN", b"334")
            self._say(base64.b64encode(self._login.username.encode()), b"334")
            self._say(base64.b64encode(self._login.password.encode()), b"235")
            self._say(b"MAIL FROM:<shop@shop.example>", b"250")
            self._say(b"RCPT TO:<kunde@mail.example>", b"250")
            self._say(b"DATA", b"354")
            for line in lines:
                client.sendall(line)
            self._say(b".", b"250")
            self.answered_at = time.monotonic()
            self._say(b"QUIT", b"221")
            self._replies.close()
        return (time.perf_counter() - begin) * 1000

    def _say(self, line: bytes, expected: bytes) -> None:
        self._socket.sendall(line + b"\r\n")
        self._expect(expected)

    def _expect(self, code: bytes) -> None:
        while True:
            line = self._replies.readline()
            if not line.startswith(code):
                raise SystemExit(f"{code!r} was expected, and {line!r} came")
            if line[3:4] != b"-":
                return


def main() -> None:
    """Measure, print; exit 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="mails to each server")
    wanted = parser.parse_args()
    heading(f"One hand-over as wp_mail() does it, 2 KB, {wanted.count} to each server")
    lines = a_mail(2048).splitlines(keepends=True)
    with ExitStack() as stack:
        programs = _programs(stack)
        found = {name: measure(programs, lines, wanted.count, pause) for name, pause in PACES}
    rows = [
        [server, pace, median(taken), percentile(taken, 0.95)]
        for pace, times in found.items()
        for server, taken in times.items()
    ]
    table(["server", "mails", "median ms", "p95 ms"], rows)
    print()
    met = []
    for pace, times in found.items():
        more = median(times[OURS]) - median(times[QUICK])
        name = f"within {BAR_MS:g} ms of {QUICK} ({pace})"
        met.append(verdict(name, more <= BAR_MS, f"{more:+.2f} ms"))
    sys.exit(0 if all(met) else 1)


def _programs(stack: ExitStack) -> dict[str, Wordpress]:
    bench = stack.enter_context(a_bench())
    _, login = bench.a_site()
    bench.start("submission").wait_for_port(bench.submission)
    return {
        OURS: Wordpress(bench.submission, login),
        QUICK: Wordpress(("127.0.0.1", stack.enter_context(an_aiosmtpd(quick=True))), login),
        BARE: Wordpress(("127.0.0.1", stack.enter_context(an_aiosmtpd(quick=False))), login),
    }


def measure(
    programs: dict[str, Wordpress], lines: list[bytes], count: int, pause: float
) -> dict[str, list[float]]:
    """Milliseconds of each hand-over by server; the servers take turns in blocks."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for begin in range(0, count, BLOCK):
        for name, program in programs.items():
            program.send(lines)  # to warm up
            for _ in range(min(BLOCK, count - begin)):
                time.sleep(pause)
                times[name].append(program.send(lines))
    return times


if __name__ == "__main__":
    main()
