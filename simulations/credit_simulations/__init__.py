"""Simulation runs, data sets and privacy-utility benchmarks, on the live apps in one process."""

from typing import TYPE_CHECKING

import credit_common as _telemetry_off  # noqa: F401  # before anything imports flwr

if TYPE_CHECKING:
    from credit_simulations.runs import run

__all__ = ["run"]


def __getattr__(name: str) -> object:
    if name == "run":  # imported late: it needs torch, and the command line should start fast
        from credit_simulations.runs import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
