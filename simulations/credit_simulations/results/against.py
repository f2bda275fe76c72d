"""A figure against ε: lines over a categorical ε, and levels for what has none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from credit_client.page.drawing import GREY, WIDTH, drawn
from credit_simulations.results.arms import ascending, label, level, order
from credit_simulations.results.claims import Spread, best_possible, overlap_of, spread
from credit_simulations.results.drawing import (
    Plot,
    bars,
    dashed,
    framed,
    is_level,
    marked,
    name_of,
    panels,
    short,
)
from credit_simulations.results.rows import Groups
from credit_simulations.results.sentences import counted
from credit_simulations.results.trials import Setting, Trial


@dataclass(frozen=True, kw_only=True)
class Figured:
    """A figure of a trial, by which arms are compared."""

    name: str
    title: str
    axis: str
    of: Callable[[Trial], float | None]


FIGURED = (
    Figured(name="auc", title="AUC against ε", axis="AUC, all users", of=lambda t: t.auc),
    Figured(
        name="holder-auc",
        title="AUC within a merchant against ε",
        axis="AUC within a holder, mean",
        of=lambda t: t.in_holder_auc,
    ),
    Figured(name="ks", title="KS against ε", axis="KS, all users", of=lambda t: t.ks),
)

Curves = dict[str, dict[float | None, Spread]]
"""Arm -> ε -> its figure over seeds."""


def against_epsilon(
    groups: Groups, data: str, settings: Sequence[Setting], figured: Figured
) -> Plot | None:
    """One panel a setting; None where no trial has the figure."""
    found = {setting: _curves(groups, setting, figured) for setting in settings}
    found = {setting: curves for setting, curves in found.items() if curves}
    if not found:
        return None
    arms = sorted({arm for curves in found.values() for arm in curves}, key=order)
    levels = [a for a in arms if all(is_level(a, c[a]) for c in found.values() if a in c)]
    epsilons = sorted(
        {e for c in found.values() for a, points in c.items() if a not in levels for e in points},
        key=ascending,
    )
    # A federation without DP is a point at ∞ of the axis, never a level.
    axis = epsilons or [None]
    best = {setting: best_possible(groups, setting) for setting in found if figured.name == "auc"}

    points = [p for curves in found.values() for over in curves.values() for p in over.values()]
    limits = framed(points, [mark for mark in best.values() if mark is not None])

    def draw(figure: Figure) -> None:
        handles: dict[str, Any] = {}
        for axes, (setting, curves) in zip(
            panels(figure, len(found), 2, alike=True), found.items(), strict=True
        ):
            handles |= _panel(axes, curves, arms, levels, axis)
            mark = best.get(setting)
            if mark is not None:
                handles["best possible"] = axes.axhline(
                    mark, color=GREY, linewidth=4, alpha=0.35, zorder=1
                )
            axes.set_ylim(*limits)
            axes.set_title(short(f"{setting.partition}, {counted(setting.holders, 'holder')}", 40))
            axes.set_ylabel(figured.axis)
        names = [short(label(arm), 24) for arm in handles]
        figure.legend(list(handles.values()), names, loc="outside right center")

    height = 4.4 if len(found) == 1 else 3.5 * ((len(found) + 1) // 2)
    return Plot(
        name=name_of(figured.name, data),
        title=f"{figured.title}, {data}",
        caption="Points are means over seeds, bars their 95% intervals (Student; a bar that is "
        "longer than the frame is cut). ∞ is the same training without DP. Horizontal lines are "
        "arms without an ε.",
        alt=f"{figured.title} on {data}. {_told(next(iter(found.values())), arms)}",
        png=drawn(draw, WIDTH, height),
    )


def _curves(groups: Groups, setting: Setting, figured: Figured) -> Curves:
    curves: Curves = {}
    for (where, arm, epsilon), trials in groups.items():
        values = [figured.of(trial) for trial in trials] if where == setting else []
        point = spread((v for v in values if v is not None), overlap_of(trials))
        if point is not None:
            curves.setdefault(arm, {})[epsilon] = point
    return curves


def _panel(
    axes: Axes,
    curves: Curves,
    arms: Sequence[str],
    levels: Sequence[str],
    axis: Sequence[float | None],
) -> dict[str, Any]:
    lines = [arm for arm in arms if arm not in levels]
    handles: dict[str, Any] = {}
    for place, arm in enumerate(lines):
        if arm not in curves:
            continue
        points = sorted(curves[arm].items(), key=lambda item: ascending(item[0]))
        colour, marker = marked(arm, place)
        beside = 0.07 * (place - (len(lines) - 1) / 2)  # so that bars do not hide one another
        handles[arm] = axes.errorbar(
            [axis.index(epsilon) + beside for epsilon, _ in points],
            [point.mean for _, point in points],
            yerr=bars([point for _, point in points]),
            color=colour,
            marker=marker,
            markersize=7,
            linewidth=2.4 if arm == "federated" else 1.5,
            elinewidth=1.2,
            capsize=3,
            zorder=4 if arm == "federated" else 3,
        )
    for place, arm in enumerate(levels):
        if arm in curves:
            colour, dashes = dashed(arm, place)
            mean = next(iter(curves[arm].values())).mean
            handles[arm] = axes.axhline(
                mean,
                color=colour,
                linestyle=dashes,
                linewidth=1.6,
                zorder=2,
            )
    axes.set_xlim(-0.5, len(axis) - 0.5)
    axes.set_xticks(range(len(axis)), [level(epsilon) for epsilon in axis])
    axes.set_xlabel("ε")
    axes.grid(visible=False, axis="x")
    return handles


def _told(curves: Curves, arms: Sequence[str]) -> str:
    parts = []
    for arm in arms:
        points = sorted(curves.get(arm, {}).items(), key=lambda item: ascending(item[0]))
        told = ", ".join(f"{point.mean:.3f} at {level(epsilon)}" for epsilon, point in points)
        parts += [f"{label(arm)}: {told}"] if told else []
    return "; ".join(parts) + "."
