"""What both benchmarks of deliveries find, print and demand, by whichever mailer."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from machine import median, table, verdict

SIZE = 5 * 1024
MOST_CHANGE = 0.10
"""How much slower a deep queue may be: what is between two runs of the same anyway."""
BAR_PER_SECOND, BAR_CPU_MS = 250, 4.0
PATIENCE = 120.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run found. `remote_share` is the processor time of the receiving process."""

    rate: float
    cpu_ms: float
    remote_share: float
    token_calls: int = 0


def report(runs: Mapping[int, Sequence[Run]], remote: str, more: Sequence[bool] = ()) -> None:
    """Print runs by the depth of their queue, and the bars; exit 1 when one is missed."""
    rates = {depth: median([run.rate for run in found]) for depth, found in runs.items()}
    cpu = {depth: median([run.cpu_ms for run in found]) for depth, found in runs.items()}
    rows = [
        [
            f"{depth:,}",
            rates[depth],
            min(run.rate for run in found),
            max(run.rate for run in found),
            cpu[depth],
            f"{median([run.remote_share for run in found]):.0%}",
        ]
        for depth, found in runs.items()
    ]
    table(["queue", "mails/s", "lowest", "highest", "CPU ms a mail", f"CPU of {remote}"], rows)
    print()
    first, *deeper = rates
    change = min(rates[depth] for depth in deeper) / rates[first] - 1
    met = [
        verdict("the depth does not change the rate", change >= -MOST_CHANGE, f"{change:+.0%}"),
        verdict(
            f"at least {BAR_PER_SECOND} mails/s",
            min(rates.values()) >= BAR_PER_SECOND,
            f"{min(rates.values()):,.0f}",
        ),
        verdict(
            f"under {BAR_CPU_MS:g} ms CPU a mail",
            max(cpu.values()) < BAR_CPU_MS,
            f"{max(cpu.values()):.2f} ms",
        ),
        *more,
    ]
    sys.exit(0 if all(met) else 1)
