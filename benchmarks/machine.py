"""Processes, figures and tables of the benchmarks; nothing of the product.

Everything happens on loopback, in temporary folders, on free ports; whatever was started is
stopped at the end.
"""

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.rig.ports import free_port  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")

__all__ = [
    "ROOT",
    "Process",
    "cpu_of",
    "family",
    "free_port",
    "heading",
    "median",
    "percentile",
    "say",
    "table",
    "verdict",
]


# ---- processes ----


class Process:
    """A running command; its output goes to a file."""

    def __init__(
        self, command: Sequence[str], *, environ: dict[str, str] | None = None, log: Path
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the benchmark, which then stops it in order
            )
        self.pid = self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._process.poll() is not None

    def cpu(self) -> float:
        """Seconds of processor time so far, its children's included."""
        return sum(cpu_of(pid) for pid in family(self.pid))

    def wait_for_port(self, address: tuple[str, int], seconds: float = 30.0) -> None:
        """Return once it listens; ends the benchmark with its last words when it does not."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.ended:
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
                return
            time.sleep(0.02)
        raise SystemExit(f"nothing listens on {address}:\n{self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        """SIGTERM, and force after a while."""
        if self.ended:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=45)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def family(pid: int) -> list[int]:
    """The process and all below it."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parents.setdefault(int(_stat(int(folder.name))[1]), []).append(int(folder.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_of(pid: int) -> float:
    """Seconds of processor time of one process and of its children that have ended."""
    try:
        return sum(int(ticks) for ticks in _stat(pid)[11:15]) / TICKS
    except OSError:
        return 0.0


# ---- figures ----


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, round(len(ranked) * share))]


def heading(what: str) -> None:
    """One line on what was measured and where."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    python = ".".join(str(part) for part in sys.version_info[:3])
    sync = median(sync_ms(100))
    print(what)
    print(f"{cores} cores, Python {python}, load before {load:.1f}, a sync to disk {sync:.2f} ms\n")


def sync_ms(count: int) -> list[float]:
    """How long this disk takes to keep 8 KB for good: what a durable answer costs at least."""
    taken = []
    with tempfile.TemporaryFile(prefix="postroom-bench-", buffering=0) as file:
        for _ in range(count):
            file.write(b"x" * 8192)
            begin = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - begin) * 1000)
    return taken


def table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns, the first to the left; floats get digits by their size."""
    texts = [list(names), *([_shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(names))]
    for row in texts:
        first, *others = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip(), flush=True)


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        if cell >= 100:
            return f"{cell:,.0f}"
        return f"{cell:.1f}" if cell >= 10 else f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def verdict(name: str, is_met: bool, figures: str) -> bool:
    """Say whether a bar is met; returns it."""
    print(f"{'met   ' if is_met else 'MISSED'}  {name}: {figures}", flush=True)
    return is_met


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)
