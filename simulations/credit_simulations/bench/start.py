"""How long the commands take to answer `--help`, each as a process of its own."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from credit_simulations.bench.measured import Measured, Value

COMMANDS = ("credit-client", "flower-server", "credit-sim")
BOUND_SECONDS = 0.7
"""Above this a command feels slow; importing torch alone passes it."""


def measure_start(repeats: int) -> Measured:
    """Median wall time of each command's `--help`, the commands taking turns."""
    folder = Path(sys.executable).parent
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name in COMMANDS:
            start = time.perf_counter()
            subprocess.run(  # noqa: S603  our own commands
                [folder / name, "--help"], check=True, stdout=subprocess.DEVNULL
            )
            seconds[name].append(time.perf_counter() - start)
    rows: list[dict[str, Value]] = [
        {
            "command": f"{name} --help",
            "median_s": round(statistics.median(seconds[name]), 3),
            "slowest_s": round(max(seconds[name]), 3),
        }
        for name in COMMANDS
    ]
    slowest = max(statistics.median(times) for times in seconds.values())
    return Measured(
        title="seconds until --help has answered",
        command=f"credit-sim bench start --repeats {repeats}",
        figures={"slowest_median_s": round(slowest, 3), "bound_s": BOUND_SECONDS},
        rows=rows,
    )
