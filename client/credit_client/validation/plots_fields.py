"""Pictures of a model report that have a bar for each group or field."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from credit_client.page.blocks import Picture
from credit_client.page.drawing import BLACK, BLUE, GREY, RED, SKY, drawn
from credit_client.validation.fairness import FOUR_FIFTHS, Fairness
from credit_client.validation.study import Study
from credit_client.validation.told import four, percent

_WIDTH, _BAR = 5.2, 0.3
_MOST = 10
_LONGEST = 24


def fairness_picture(study: Study) -> Picture | None:
    """Approval rates by group at the first cut-off; None where no two groups are compared."""
    compared = [each for each in study.fairness if each.at]
    if not compared:
        return None
    at = compared[0].at[0]
    sizes = [len(each.at[0].groups) for each in compared]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(
            len(compared), squeeze=False, sharex=True, height_ratios=[n + 1 for n in sizes]
        )
        for axes, each in zip(grid[:, 0], compared, strict=True):
            _groups(axes, each)
        grid[-1, 0].set_xlabel("share approved")

    told = [
        f"{each.field} {group.name}: {percent(group.approved)}"
        for each in compared
        for group in each.at[0].groups
    ]
    return Picture(
        title=f"Share approved by group ({at.mark} {at.pd:g})",
        caption="Upright marks are four fifths of the field's highest rate; a red bar is below "
        "its own.",
        alt="; ".join(told),
        png=drawn(draw, _WIDTH, 0.6 + 0.5 * len(compared) + _BAR * sum(sizes)),
        half=True,
    )


def _groups(axes: Axes, fairness: Fairness) -> None:
    groups = fairness.at[0].groups
    rates = [group.approved for group in groups]
    mark, places = FOUR_FIFTHS * max(rates), np.arange(len(groups))[::-1]
    colours = [RED if rate < mark else BLUE for rate in rates]
    bars = axes.barh(places, rates, color=colours, height=0.7)
    for place in places:
        axes.plot([mark, mark], [place - 0.42, place + 0.42], color=BLACK, linewidth=1.6)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axes.bar_label(bars, [f"{100 * rate:.1f}%" for rate in rates], padding=4, bbox=behind)
    _named(axes, places, [_short(group.name) for group in groups])
    axes.set(xlim=(0, 1.12), title=_short(fairness.field))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def iv_picture(study: Study) -> Picture | None:
    """The fields of the most information value; None where there is no field."""
    shown = sorted(study.evidence, key=lambda each: -each.iv)[:_MOST]
    if not shown:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(shown))[::-1]
        axes.barh(places, [each.iv for each in shown], color=BLUE, height=0.7)
        for place, each in zip(places, shown, strict=True):
            ends = [place - 0.42, place + 0.42]
            axes.plot([each.by_chance] * 2, ends, color=BLACK, linewidth=1.6)
        _named(axes, places, [_short(each.name) for each in shown])
        axes.set(xlabel="information value")

    return Picture(
        title="Information value",
        caption="Upright marks are what a field of as many cells has by chance.",
        alt="; ".join(f"{each.name}: {four(each.iv)}" for each in shown),
        png=drawn(draw, _WIDTH, 1.0 + _BAR * len(shown)),
        half=True,
    )


def points_picture(study: Study) -> Picture | None:
    """The fields that can move a score most; None where the release has no wide part."""
    if study.points is None:
        return None
    shown = study.points.strongest(_MOST)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(shown))[::-1]
        for place, field in zip(places, shown, strict=True):
            low, high = min(field.points), max(field.points)
            axes.plot([low, high], [place] * 2, color=SKY, linewidth=7, solid_capstyle="butt")
            axes.plot(field.points, [place] * len(field.points), "|", color=BLACK, markersize=9)
        axes.axvline(0, color=GREY, linestyle="--")
        _named(axes, places, [_short(field.name) for field in shown])
        axes.set(xlabel="points beside the reference applicant")

    return Picture(
        title="What fields can give and take",
        caption="A tick is a cell of the field; 0 is the contract's reference applicant.",
        alt="; ".join(
            f"{field.name}: {min(field.points):.0f} to {max(field.points):.0f}" for field in shown
        ),
        png=drawn(draw, _WIDTH, 1.0 + _BAR * len(shown)),
        half=True,
    )


def _named(axes: Axes, places: np.ndarray, names: list[str]) -> None:
    axes.set_yticks(places, names)
    axes.grid(False, axis="y")
    axes.set_ylim(-0.7, len(names) - 0.3)


def _short(name: str) -> str:
    """A label of one line; both of its ends tell names apart."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    if len(flat) <= _LONGEST:
        return flat
    tail = _LONGEST // 2
    return f"{flat[: _LONGEST - tail - 1]}…{flat[-tail:]}"
