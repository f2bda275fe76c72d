"""What an arm takes: bytes that one holder sends in one round, and wall time."""

import statistics

from matplotlib.figure import Figure

from credit_client.page.drawing import BLUE, GREY, WIDTH, drawn
from credit_simulations.results.arms import label
from credit_simulations.results.drawing import (
    Plot,
    name_of,
    short,
)
from credit_simulations.results.rows import Groups
from credit_simulations.results.trials import Trial


def bytes_plot(groups: Groups, data: str) -> Plot | None:
    """Bytes up of arms that send any."""
    found = {
        arm: statistics.fmean(trial.bytes_up for trial in trials) / 1024
        for arm, trials in _by_arm(groups, data).items()
    }
    found = {arm: kib for arm, kib in found.items() if kib}
    if not found:
        return None
    told = {arm: f"{kib:,.1f} KiB" for arm, kib in found.items()}
    return Plot(
        name=name_of("bytes", data),
        title=f"Bytes up in a round, {data}",
        caption="Sent by one holder in one round, mean over trials. Arms that send nothing are "
        "left out.",
        alt="Bytes up: " + _listed(told),
        png=_bars(found, told, "KiB up, one holder, one round"),
        half=True,
    )


def seconds_plot(groups: Groups, data: str) -> Plot | None:
    """Wall time of one trial of each arm."""
    found = {
        arm: statistics.fmean(trial.seconds for trial in trials)
        for arm, trials in _by_arm(groups, data).items()
    }
    told = {arm: _time(seconds) for arm, seconds in found.items()}
    return Plot(
        name=name_of("seconds", data),
        title=f"Wall time of a trial, {data}",
        caption="From start to figures, mean over trials at all ε and settings.",
        alt="Wall time: " + _listed(told),
        png=_bars(found, told, "seconds a trial"),
        half=True,
    )


def _by_arm(groups: Groups, data: str) -> dict[str, list[Trial]]:
    found: dict[str, list[Trial]] = {}
    for (setting, arm, _), trials in groups.items():
        if setting.data == data:
            found.setdefault(arm, []).extend(trials)
    return found


def _bars(values: dict[str, float], told: dict[str, str], axis: str) -> bytes:
    arms = list(values)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        heights = range(len(arms))
        colours = [BLUE if arm == "federated" else GREY for arm in arms]
        drawn_bars = axes.barh(heights, [values[arm] for arm in arms], height=0.6, color=colours)
        axes.bar_label(drawn_bars, [told[arm] for arm in arms], padding=4)
        axes.set_yticks(heights, [short(label(arm)) for arm in arms])
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_xlim(0, max(*values.values(), 1e-9) * 1.42)  # room for the longest label
        axes.set_xlabel(axis)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=5)

    return drawn(draw, WIDTH / 2, 1.1 + 0.34 * len(arms))


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def _listed(told: dict[str, str]) -> str:
    return ", ".join(f"{label(arm)} {words}" for arm, words in told.items()) + "."
