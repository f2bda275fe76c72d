"""Calibration, and AUC round by round, of the federated arm at each ε."""

import statistics
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from credit_client.page.drawing import GREY, WIDTH, drawn
from credit_simulations.results.arms import ascending, label, level, order
from credit_simulations.results.drawing import (
    Plot,
    name_of,
    of_epsilon,
    panels,
    short,
)
from credit_simulations.results.rows import Groups
from credit_simulations.results.sentences import counted
from credit_simulations.results.trials import Bin, Setting, Trial

GROUPS = 10
"""Most points of a calibration curve."""

Panel = tuple[Setting, str]
"""A setting and an arm."""


def calibration_plot(groups: Groups, data: str, settings: Sequence[Setting]) -> Plot | None:
    """Predicted against observed default rates, one panel a setting."""
    shown = [
        (setting, "federated")
        for setting in settings
        if any(t.calibration for t in _trials(groups, setting, "federated"))
    ]
    if not shown:
        return None

    every = _all_epsilons(groups, shown)

    def panel(axes: Axes, pair: Panel) -> None:
        top = 0.0
        for colour, marker, name, trials in _levels(groups, pair, every):
            points = merged([each for trial in trials for each in trial.calibration])
            xs, ys = [p.predicted for p in points], [p.observed for p in points]
            top = max(top, *xs, *ys) if points else top
            axes.plot(xs, ys, color=colour, marker=marker, markersize=6, linewidth=1.5, label=name)
        end = min(max(top * 1.06, 0.05), 1.0)
        axes.plot([0, end], [0, end], color=GREY, linewidth=1, linestyle=":", zorder=1)
        axes.set_xlim(0, end)
        axes.set_ylim(0, end)
        axes.set_aspect("equal")
        axes.set_xlabel("predicted default rate")
        axes.set_ylabel("observed")

    return Plot(
        name=name_of("calibration", data),
        title=f"Calibration, {data}",
        caption="Users of like predictions, over all seeds, in groups of about equal size: the "
        "mean prediction against the share that defaulted. On the dotted line, what is predicted "
        "comes true; below it, risk is overstated.",
        alt=f"Predicted against observed default rates of the federated arm on {data}, at "
        + _listed(every),
        png=_drawn(shown, panel),
    )


def rounds_plot(groups: Groups, data: str, settings: Sequence[Setting]) -> Plot | None:
    """AUC by round: all arms of the first setting, the federated arm of the others."""
    first = settings[0]
    arms = {arm for setting, arm, _ in groups if setting == first}
    # Of holders that take no part the coordinator reads nothing.
    wanted = [(first, arm) for arm in sorted(arms - {"newcomers"}, key=order)]
    wanted += [(setting, "federated") for setting in settings[1:]]
    shown = [pair for pair in wanted if any(t.rounds for t in _trials(groups, *pair))]
    if not shown:
        return None

    every = _all_epsilons(groups, shown)

    def panel(axes: Axes, pair: Panel) -> None:
        for colour, marker, name, trials in _levels(groups, pair, every):
            told = [trial.rounds for trial in trials if trial.rounds]
            for rounds in told if len(told) > 1 else []:
                axes.plot(*zip(*rounds, strict=True), color=colour, linewidth=0.8, alpha=0.35)
            means = by_round(told)
            if means:
                xs, ys = zip(*means, strict=True)
                step = max(len(xs) // 8, 1)
                axes.plot(
                    xs, ys, color=colour, marker=marker, markevery=step, linewidth=2, label=name
                )
        axes.set_xlabel("round")
        axes.set_ylabel("AUC, as released")

    return Plot(
        name=name_of("rounds", data),
        title=f"AUC round by round, {data}",
        caption="As the coordinator reads it off the counts that holders release, under ε with "
        "their noise. Bold: mean over seeds; thin: each seed.",
        alt=f"AUC of each arm after each round on {data}, at " + _listed(every),
        png=_drawn(shown, panel, alike=True),
    )


def merged(bins: Sequence[Bin], most: int = GROUPS) -> list[Bin]:
    """Bins of several trials, by prediction, put together into groups of about equal size."""
    found = sorted((each for each in bins if each.users), key=lambda each: each.predicted)
    total = sum(each.users for each in found)
    groups: dict[int, list[Bin]] = {}
    for each, before in zip(
        found, accumulate((each.users for each in found), initial=0), strict=False
    ):
        # A bin belongs where its middle user does.
        groups.setdefault(int((before + each.users / 2) * most // total), []).append(each)
    return [_together(group) for group in groups.values()]


def by_round(told: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Mean over seeds at each round that all of them have, or that any has if none is shared."""
    seen: dict[int, list[float]] = {}
    for rounds in told:
        for number, auc in rounds:
            seen.setdefault(number, []).append(auc)
    shared = {number: values for number, values in seen.items() if len(values) == len(told)}
    return sorted((number, statistics.fmean(values)) for number, values in (shared or seen).items())


def _together(bins: Sequence[Bin]) -> Bin:
    users = sum(each.users for each in bins)
    return Bin(
        predicted=sum(each.predicted * each.users for each in bins) / users,
        observed=sum(each.observed * each.users for each in bins) / users,
        users=users,
    )


def _trials(groups: Groups, setting: Setting, arm: str) -> list[Trial]:
    return [t for (s, a, _), found in groups.items() if (s, a) == (setting, arm) for t in found]


def _all_epsilons(groups: Groups, shown: Sequence[Panel]) -> list[float | None]:
    return sorted({e for s, a, e in groups if (s, a) in shown}, key=ascending)


def _levels(
    groups: Groups, panel: Panel, every: Sequence[float | None]
) -> list[tuple[str, str, str, list[Trial]]]:
    """Colour, marker, name and trials at each ε of an arm, alike in all panels of a figure."""
    return [
        (*of_epsilon(epsilon, every), _name(epsilon), groups[(*panel, epsilon)])
        for epsilon in every
        if (*panel, epsilon) in groups
    ]


def _drawn(
    shown: Sequence[Panel], panel: Callable[[Axes, Panel], None], alike: bool = False
) -> bytes:
    def draw(figure: Figure) -> None:
        handles: dict[str, Any] = {}
        places = panels(figure, len(shown), columns, alike)
        for number, (axes, (setting, arm)) in enumerate(zip(places, shown, strict=True)):
            panel(axes, (setting, arm))
            if alike and number % columns:
                axes.set_ylabel("")
            where = f"{setting.partition}, {counted(setting.holders, 'holder')}"
            axes.set_title(f"{short(label(arm), 30)}\n{short(where, 30)}")
            found = axes.get_legend_handles_labels()
            handles |= dict(zip(found[1], found[0], strict=True))
        figure.legend(list(handles.values()), list(handles), loc="outside right center")

    columns = 2 if len(shown) in (2, 4) else 3
    rows = -(-len(shown) // columns)
    return drawn(draw, WIDTH, 3.5 * rows if len(shown) > 1 else 4.2)


def _listed(every: Sequence[float | None]) -> str:
    return f"{', '.join(map(_name, every))}."


def _name(epsilon: float | None) -> str:
    return "no DP" if epsilon is None else f"ε = {level(epsilon)}"
