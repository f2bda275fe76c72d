"""What each merchant gains over training alone, drawn: who loses is seen at once."""

from collections.abc import Sequence, Set

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from credit_client.page.drawing import BLACK, BLUE, GREY, RED, WIDTH, drawn
from credit_simulations.results.claims import Answer, Merchant, headline
from credit_simulations.results.drawing import (
    Plot,
    framed,
    name_of,
    short,
)
from credit_simulations.results.sentences import at, counted, lose, place, signed

NAMED = 80
"""Most merchants that are named in a figure; more are drawn as a shape."""
PANELS = 4
"""Panels side by side."""


def gain_plot(found: Sequence[Answer], first: bool) -> Plot | None:
    """One panel an ε with a line for each merchant, all in the order of the headline's ε.

    Args:
        found: The answers of one setting.
        first: Whether it is the first setting of its data set, which needs no more than its name.
    """
    told = [answer for answer in found if answer.merchants]
    lead = headline(told)
    if lead is None:
        return None
    setting = lead.setting
    names = [merchant.name for merchant in lead.merchants]
    others = {m.name for answer in told for m in answer.merchants} - set(names)
    names += sorted(others)
    rows = -(-len(told) // PANELS)
    wide = min(len(told), PANELS)
    tall = 1.3 + (0.215 * len(names) if len(names) <= NAMED else 7.0)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, wide, squeeze=False, sharex=True, sharey=True)
        every = [merchant.gain for answer in told for merchant in answer.merchants]
        limits = framed(every, [0.0])
        for axes, answer in zip(grid.flat, told, strict=False):
            _panel(axes, answer, names, {merchant.name for merchant in lead.losers})
            axes.set_xlim(*limits)
            axes.set_xlabel("gain in AUC")
        if len(names) > NAMED:
            figure.supylabel(f"{len(names):,} merchants", fontsize=10.5)
        for unused in list(grid.flat)[len(told) :]:
            unused.set_axis_off()
        losers = len(lead.losers)
        figure.suptitle(
            f"{counted(losers, 'merchant')} of {len(lead.merchants)} "
            f"{lose(losers)} {at(lead.epsilon)}",
            x=0.01,
            ha="left",
            fontsize=12,
            fontweight="bold",
            color=RED if losers else BLACK,
        )

    tag = () if first else (setting.partition, str(setting.holders))
    return Plot(
        name=name_of("gain", setting.data, *tag),
        title=f"Gain of each merchant over training alone, {place(setting)}",
        caption="Federated minus local AUC on the merchant's own hold-out users: mean over seeds "
        "and 95% interval (Student; cut at the frame). Blue gains, orange-red loses; hollow marks "
        f"are within noise. All panels are in the order of the gain {at(lead.epsilon)}. Of twenty "
        "merchants, about one interval misses by chance.",
        alt=f"Gain of each merchant of {place(setting)}. "
        + " ".join(_told(answer) for answer in told),
        png=drawn(draw, WIDTH, tall * rows),
    )


def _panel(axes: Axes, answer: Answer, names: Sequence[str], lost: Set[str]) -> None:
    below = {name: number for number, name in enumerate(names)}
    axes.axvline(0, color=GREY, linewidth=1)
    for merchant in answer.merchants:
        _line(axes, merchant, below[merchant.name], 6 if len(names) <= NAMED else 3.5)
    axes.set_title(f"{at(answer.epsilon)}\n{len(answer.losers)} of {len(answer.merchants)} lose")
    axes.set_ylim(len(names) - 0.4, -0.6)
    if len(names) <= NAMED:
        axes.set_yticks(range(len(names)), [short(name) for name in names], fontsize=9.5)
        for name, tick in zip(names, axes.get_yticklabels(), strict=False):
            tick.set_color(RED if name in lost else BLACK)
    else:
        axes.set_yticks([])
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelbottom=True)  # shared, and yet each row has its own
    axes.locator_params(axis="x", nbins=5)


def _line(axes: Axes, merchant: Merchant, height: int, size: float) -> None:
    colour = RED if merchant.loses else BLUE
    gain = merchant.gain
    if gain.low is not None and gain.high is not None:
        axes.plot([gain.low, gain.high], [height] * 2, color=colour, linewidth=size / 4, alpha=0.55)
    axes.plot(
        [gain.mean],
        [height],
        marker="s" if merchant.loses else "o",
        color=colour,
        markersize=size,
        markerfacecolor=colour if gain.sign else "white",
        markeredgewidth=size / 4,
    )


def _told(answer: Answer) -> str:
    best, worst = answer.merchants[0], answer.merchants[-1]
    return (
        f"{at(answer.epsilon)}: {len(answer.losers)} of {len(answer.merchants)} lose, from "
        f"{signed(worst.gain.mean)} ({worst.name}) to {signed(best.gain.mean)} ({best.name})."
    )
