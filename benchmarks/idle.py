"""What `postroom serve` costs when nothing happens, and how soon it is ready.

    python benchmarks/idle.py [--starts 3] [--seconds 30]

Started with a database that exists and files already compiled. Memory is PSS: what the processes
share is counted once.
"""

import argparse
import contextlib
import http.client
import re
import sys
import time
from pathlib import Path

from common import Bench, a_bench
from machine import Process, family, free_port, heading, median, say, table, verdict

BAR_MB, BAR_PERCENT, BAR_SECONDS = 250, 1.0, 3.0
SETTLE_SECONDS = 5.0
PATIENCE = 60.0


def main() -> None:
    """Measure, print; exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of watching the idle CPU")
    wanted = parser.parse_args()
    heading("postroom serve, SQLite, idle")
    with a_bench() as bench:
        bench.an_admin()
        bench.a_site(sink=free_port())
        _start(bench)[0].stop()  # compiles what needs it
        times = []
        for number in range(wanted.starts):
            say(f"start {number + 1} of {wanted.starts}")
            process, taken = _start(bench)
            times.append(taken)
            if number < wanted.starts - 1:
                process.stop()
        say("watching")
        time.sleep(SETTLE_SECONDS)
        before, begin = process.cpu(), time.monotonic()
        time.sleep(wanted.seconds)
        percent = (process.cpu() - before) / (time.monotonic() - begin) * 100
        names = {process.pid: "supervisor"} | _parts(process)
        rows = [[names.get(pid, "web, worker"), pss_mb(pid)] for pid in family(process.pid)]
    table(["process", "PSS MB"], rows)
    memory = sum(float(str(row[1])) for row in rows)
    print()
    ready = median(times)
    met = [
        verdict(f"under {BAR_MB} MB", memory < BAR_MB, f"{memory:.0f} MB"),
        verdict(f"under {BAR_PERCENT:g} % CPU", percent < BAR_PERCENT, f"{percent:.2f} %"),
        verdict(f"ready within {BAR_SECONDS:g} s", ready < BAR_SECONDS, f"{ready:.2f} s"),
    ]
    sys.exit(0 if all(met) else 1)


def _start(bench: Bench) -> tuple[Process, float]:
    """Run `serve`; returns it and the seconds until it was ready."""
    begin = time.monotonic()
    process = bench.start("serve")
    while time.monotonic() < begin + PATIENCE and not process.ended:
        if _is_ready(bench):
            return process, time.monotonic() - begin
        time.sleep(0.02)
    raise SystemExit(f"serve did not become ready:\n{process.log.read_text()[-2000:]}")


def _is_ready(bench: Bench) -> bool:
    connection = http.client.HTTPConnection(*bench.http, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False


def _parts(process: Process) -> dict[int, str]:
    """Which part each child is, as the supervisor told when it started them."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", process.log.read_text())
    told = re.findall(r"part started.*?part=(\w+).*?pid=(\d+)", plain)
    told += [(part, pid) for pid, part in re.findall(r"pid=(\d+) part=(\w+)", plain)]
    return {int(pid): part for part, pid in told}


def pss_mb(pid: int) -> float:
    """The share of memory that this process answers for."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
