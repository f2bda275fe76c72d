"""The parts of a model report on calibration and on groups of people."""

from collections.abc import Iterator, Sequence

from credit_client.page.blocks import Block, Table
from credit_client.validation.calibration import FITTED_ON
from credit_client.validation.cutoffs import DECLINE
from credit_client.validation.fairness import FEWEST_OF_A_GROUP, AtCutOff, Fairness
from credit_client.validation.study import Study
from credit_client.validation.told import four, percent


def calibration_blocks(study: Study) -> list[Block]:
    """Before and after, with the tenths of what decisions are made by."""
    own = study.judged.calibration
    rows = [
        (
            each.name + (" (in use)" if each.name == own else ""),
            percent(each.mean_pd),
            four(each.brier),
            four(each.log_loss),
            four(each.ece),
            f"{each.slope:.2f}",
            f"{round(each.intercept, 2) + 0.0:+.2f}",
            f"{each.hosmer_lemeshow:.1f}",
            f"{each.p_value:.3g}",
        )
        for each in study.calibration
    ]
    heads = (
        "<PDs",
        ">mean PD",
        ">Brier",
        ">log loss",
        ">ECE",
        ">slope",
        ">intercept",
        ">H-L",
        ">p",
    )
    blocks: list[Block] = [
        Table(heads=heads, widths=(18, 8, 7, 8, 7, 6, 9, 8, 9), rows=rows, dense=True)
    ]
    blocks += [f"Not judged: {why} ({FITTED_ON})." for _, why in study.not_calibrated]
    for each in study.calibration:
        if each.name == (own or study.calibration[0].name):
            tenths = [
                (
                    str(r.users),
                    str(r.bads),
                    percent(r.mean_pd),
                    percent(r.bad_rate),
                    f"{percent(r.low)} to {percent(r.high)}",
                )
                for r in each.rows
            ]
            columns = (">users", ">bads", ">said", ">came", ">95% interval")
            blocks.append(f"Tenths of the users by PD ({each.name}):")
            blocks.append(Table(heads=columns, widths=(8, 8, 9, 9, 20), rows=tenths, dense=True))
    return blocks


def fairness_blocks(study: Study, pictures: Sequence[Block]) -> Iterator[Block]:
    """Each protected field: its groups, and what the cut-offs do to them."""
    if not study.fairness:
        yield "The contract has no protected field, so nothing can be said about groups."
        return
    if not study.decision.decides:
        yield (
            "No cut-off is in force: the contract's public base rate stands for one, approving "
            "whoever has a PD below it."
        )
    yield from pictures
    for each in study.fairness:
        yield from _groups(each)


def _groups(fairness: Fairness) -> Iterator[Block]:
    rows = [
        (
            group.name,
            str(group.users),
            percent(group.bad_rate),
            percent(group.mean_pd),
            four(group.auc),
            four(group.brier),
        )
        for group in fairness.groups
    ]
    heads = (f"<{fairness.field}", ">users", ">bad rate", ">mean PD", ">AUC", ">Brier")
    yield Table(heads=heads, widths=(24, 8, 9, 9, 8, 8), rows=rows, dense=True)
    few = [group.name for group in fairness.groups if not group.judged]
    if few:
        yield (
            f"Counted, not judged, having fewer than {FEWEST_OF_A_GROUP} users: {'; '.join(few)}."
        )
    if not fairness.at:
        yield "There are no two groups to be compared."
    for at in fairness.at:
        yield from _at(fairness.field, at)


def _at(field: str, at: AtCutOff) -> Iterator[Block]:
    rows = [
        (
            group.name,
            percent(group.approved),
            percent(group.approved_good),
            percent(group.approved_bad),
        )
        for group in at.groups
    ]
    heads = (
        f"<{field}, {at.mark} {at.pd:g}",
        ">not declined" if at.mark == DECLINE else ">approved",
        ">of those who repay",
        ">of those who do not",
    )
    yield Table(heads=heads, widths=(34, 12, 18, 19), rows=rows, dense=True)
    words = f"Demographic parity: difference {four(at.parity_difference)}"
    if at.parity_ratio is not None:
        mark = "" if at.four_fifths else ", BELOW FOUR FIFTHS"
        words += f", ratio {four(at.parity_ratio)}{mark}"
    if at.odds_difference is not None:
        words += f". Equalized odds: difference {four(at.odds_difference)}"
        words += "" if at.odds_ratio is None else f", ratio {four(at.odds_ratio)}"
    yield words + "."
