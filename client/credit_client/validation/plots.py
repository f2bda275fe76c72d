"""The pictures of a model report: all of one size, readable on a phone."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from credit_client.page.blocks import Picture
from credit_client.page.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, RED, drawn
from credit_client.validation.figures import shares_below
from credit_client.validation.plots_fields import fairness_picture, iv_picture, points_picture
from credit_client.validation.study import Study
from credit_client.validation.told import four, percent

SIZE = (5.2, 3.7)
"""Inches of a picture."""
_STYLES = {"as released": (BLUE, "o"), "platt": (ORANGE, "s"), "isotonic": (GREEN, "^")}


def pictures(study: Study) -> dict[str, Picture]:
    """All pictures of a study, by name; those that have something to show."""
    found = {
        "roc": _roc(study),
        "ks": _ks(study),
        "scores": _scores(study),
        "gain": _gain(study),
        "cutoffs": _cut_offs(study),
        "reliability": _reliability(study),
        "fairness": fairness_picture(study),
        "iv": iv_picture(study),
        "points": points_picture(study),
    }
    return {name: picture for name, picture in found.items() if picture is not None}


def _one(draw: Callable[[Axes], None], title: str, caption: str, alt: str) -> Picture:
    def whole(figure: Figure) -> None:
        draw(figure.subplots())

    return Picture(title=title, caption=caption, alt=alt, png=drawn(whole, *SIZE), half=True)


def _roc(study: Study) -> Picture:
    _, bad, good = shares_below(study.sample.logits, study.sample.labels)
    figures = study.figures

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="a toss")
        label = f"AUC {four(figures.auc)}"
        axes.plot([*(1 - good), 0.0], [*(1 - bad), 0.0], color=BLUE, label=label)
        axes.set(xlabel="share of others flagged", ylabel="share of defaults flagged")
        _shares(axes)
        axes.legend(loc="lower right")

    return _one(
        draw,
        "ROC curve",
        "Each point is a cut-off: how many defaults it catches, and how many others with them.",
        f"ROC curve with an AUC of {four(figures.auc)}",
    )


def _ks(study: Study) -> Picture:
    cuts, bad, good = shares_below(study.sample.logits, study.sample.labels)
    order = np.sort(study.sample.logits)
    flagged = 1 - np.searchsorted(order, cuts, "left") / order.size
    place = int(np.argmax(np.abs(good - bad)))
    ends = (1 - good[place], 1 - bad[place])

    def draw(axes: Axes) -> None:
        axes.plot([*flagged, 0.0], [*(1 - bad), 0.0], color=RED, label="defaults")
        axes.plot([*flagged, 0.0], [*(1 - good), 0.0], color=BLUE, linestyle="--", label="others")
        axes.plot([flagged[place]] * 2, ends, color=BLACK, marker="_", label="KS")
        axes.annotate(
            f"{four(study.figures.ks)}",
            (flagged[place], sum(ends) / 2),
            xytext=(6, 0),
            textcoords="offset points",
        )
        axes.set(xlabel="share of users, the riskiest first", ylabel="share found so far")
        _shares(axes)
        axes.legend(loc="lower right")

    return _one(
        draw,
        "KS curve",
        f"Largest distance at PD {four(study.figures.ks_pd)}. The upper curve is the gain curve.",
        f"Cumulative shares of defaults and others, {four(study.figures.ks)} apart at most",
    )


def _scores(study: Study) -> Picture:
    points, labels = study.told_points, study.sample.labels

    def draw(axes: Axes) -> None:
        edges = np.histogram_bin_edges(points, 25).tolist()
        for label, colour, name, style in ((0, BLUE, "others", "-"), (1, RED, "defaults", "--")):
            own = points[labels == label]
            shares = np.full(own.size, 1 / own.size)
            axes.hist(own, edges, weights=shares, color=colour, alpha=0.22)
            axes.hist(
                own,
                edges,
                weights=shares,
                color=colour,
                histtype="step",
                linestyle=style,
                linewidth=1.6,
                label=name,
            )
        axes.set(xlabel="scorecard points: more, less risk", ylabel="share of each")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend()

    means = [points[labels == label].mean() for label in (0, 1)]
    return _one(
        draw,
        "Scores by outcome",
        "Points of users who defaulted and of the others; the less they overlap, the better.",
        f"Points: {means[0]:.0f} on average for users without default, {means[1]:.0f} for those "
        "with one",
    )


def _gain(study: Study) -> Picture:
    bands = study.bands

    def draw(axes: Axes) -> None:
        places = [band.number for band in bands]
        drawn_bars = axes.bar(places, [band.lift for band in bands], color=BLUE, width=0.75)
        told = [f"{100 * band.gain:.0f}%" for band in bands]
        axes.axhline(1, color=GREY, linestyle="--")
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.bar_label(drawn_bars, told, fontsize=8.5, padding=2, bbox=behind)
        axes.set(xlabel="tenth of users, the riskiest first", ylabel="lift", xticks=places)
        axes.margins(y=0.12)
        axes.grid(False, axis="x")

    return _one(
        draw,
        "Lift and gain",
        "Bad rate of each tenth over that of all users; above it, the share of all defaults found "
        "so far.",
        "; ".join(f"band {b.number}: lift {b.lift:.2f}, gain {percent(b.gain)}" for b in bands),
    )


def _cut_offs(study: Study) -> Picture:
    cuts = [cut for cut in study.cut_offs if cut.approved]

    def draw(axes: Axes) -> None:
        rates = [cut.approval_rate for cut in cuts]
        seen = [cut.bad_rate_approved or 0.0 for cut in cuts]
        loss = study.stakes.lgd * study.stakes.exposure
        said = [(cut.expected_loss or 0.0) / loss for cut in cuts] if loss else []
        axes.plot(rates, seen, color=RED, marker="o", markersize=3.5, label="came")
        if said:
            axes.plot(rates, said, color=BLUE, linestyle="--", label="said (mean PD)")
        for cut, style in zip((c for c in study.cut_offs if c.mark), ("-", ":"), strict=False):
            label = f"{cut.mark} {cut.pd:g}"
            axes.axvline(cut.approval_rate, color=BLACK, linestyle=style, label=label)
        axes.set(xlabel="share of users approved", ylabel="bad rate of those approved")
        axes.set(xlim=(0, 1.02), ylim=(0, None))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=True, framealpha=0.8, edgecolor="none")

    marks = [
        f"{cut.mark} {cut.pd:g} approves {percent(cut.approval_rate)}"
        for cut in study.cut_offs
        if cut.mark
    ]
    return _one(
        draw,
        "Cut-off curve",
        "Bad rate of those approved against how many are; upright lines are cut-offs in force.",
        "Bad rate by approval rate; " + "; ".join(marks),
    )


def _reliability(study: Study) -> Picture:
    own = study.judged.calibration or study.calibration[0].name

    def draw(axes: Axes) -> None:
        most = max(max(row.mean_pd, row.high) for each in study.calibration for row in each.rows)
        axes.plot([0, most], [0, most], color=GREY, linestyle="--")
        for each in study.calibration:
            colour, marker = _STYLES[each.name]
            x, y = [r.mean_pd for r in each.rows], [r.bad_rate for r in each.rows]
            if each.name == own:
                low = [max(r.bad_rate - r.low, 0.0) for r in each.rows]
                high = [max(r.high - r.bad_rate, 0.0) for r in each.rows]
                axes.errorbar(x, y, [low, high], fmt="none", ecolor=colour, alpha=0.5)
            axes.plot(
                x,
                y,
                color=colour,
                marker=marker,
                markersize=4.5,
                label=each.name,
                alpha=1.0 if each.name == own else 0.55,
            )
        axes.set(xlabel="mean PD said", ylabel="bad rate that came")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=True, framealpha=0.8, edgecolor="none")

    return _one(
        draw,
        "Reliability",
        f"Tenths of the users; on the dashed line PDs are right. Bars are 95% intervals ({own}).",
        "; ".join(f"{e.name}: expected calibration error {four(e.ece)}" for e in study.calibration),
    )


def _shares(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
