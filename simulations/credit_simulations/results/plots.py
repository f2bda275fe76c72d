"""All figures of a results file, by data set, as PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from credit_common.errors import CreditError
from credit_simulations.results.against import FIGURED, against_epsilon
from credit_simulations.results.claims import answers
from credit_simulations.results.curves import calibration_plot, rounds_plot
from credit_simulations.results.drawing import Plot
from credit_simulations.results.expenses import bytes_plot, seconds_plot
from credit_simulations.results.merchants import gain_plot
from credit_simulations.results.rows import groups, settings
from credit_simulations.results.trials import Trial


def plots(trials: Sequence[Trial]) -> dict[str, list[Plot]]:
    """Data set -> its figures, in the order in which they are read; those that have any points."""
    grouped = groups(trials)
    found: dict[str, list[Plot]] = {}
    taken: set[str] = set()
    for data, where in settings(trials).items():
        every = [
            *(gain_plot(answers(grouped, s), first=s == where[0]) for s in where),
            *(against_epsilon(grouped, data, where, figured) for figured in FIGURED),
            calibration_plot(grouped, data, where),
            rounds_plot(grouped, data, where),
            bytes_plot(grouped, data),
            seconds_plot(grouped, data),
        ]
        found[data] = [_alone(plot, taken) for plot in every if plot is not None]
    return found


def write_plots(found: Mapping[str, Sequence[Plot]], folder: Path) -> list[Path]:
    """Write each figure as a file of its name.

    Raises:
        CreditError: If the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for plot in (plot for several in found.values() for plot in several):
            path = folder / f"{plot.name}.png"
            path.write_bytes(plot.png)
            written.append(path)
    except OSError as error:
        raise CreditError(f"{folder}: {error.strerror or 'cannot be written'}") from None
    return written


def _alone(plot: Plot, taken: set[str]) -> Plot:
    """The plot under a name that none before it has: two data sets may differ by signs only."""
    name, number = plot.name, 2
    while name in taken:
        name, number = f"{plot.name}-{number}", number + 1
    taken.add(name)
    return replace(plot, name=name)
