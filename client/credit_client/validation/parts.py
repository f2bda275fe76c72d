"""What a study says to a credit modeller: the answer first, then all tables.

Terminal, Markdown and page show what is said here; the page has pictures too.
"""

from collections.abc import Iterator, Mapping

from credit_client.page.blocks import Block, Facts, Part, Picture, Points, Table
from credit_client.validation.calibration import Calibrated
from credit_client.validation.parts_compared import challenge_blocks, period_blocks
from credit_client.validation.parts_fields import field_blocks, points_blocks
from credit_client.validation.parts_groups import calibration_blocks, fairness_blocks
from credit_client.validation.study import Study
from credit_client.validation.told import four, money, percent, plural

Pictures = Mapping[str, Picture]
"""By the name that `plots.pictures` gives them."""


def title_of(study: Study) -> str:
    """What the report is called."""
    return f"Model report of {study.judged.federation}"


def parts(study: Study, pictures: Pictures | None = None) -> Iterator[Part]:
    """All parts, in the order in which they are read.

    Args:
        pictures: Those that the medium can show.
    """
    shown = pictures or {}

    def of(*names: str) -> list[Block]:
        return [shown[name] for name in names if name in shown]

    yield Part(title="The answer", blocks=_answer(study))
    yield Part(title="What was judged on whom", blocks=_judged(study))
    order = [*_figures(study), *of("roc", "ks", "scores", "gain"), *_bands(study)]
    yield Part(title="How well users are ordered", blocks=order)
    yield Part(title="Cut-offs", blocks=[*_cut_offs(study), *of("cutoffs"), *_decisions(study)])
    told = calibration_blocks(study)
    yield Part(title="Calibration", blocks=[*told[:1], *of("reliability"), *told[1:]])
    yield Part(title="Groups of people", blocks=[*fairness_blocks(study, of("fairness"))])
    told = field_blocks(study)
    yield Part(title="Fields, one by one", blocks=[*told[:1], *of("iv"), *told[1:]])
    yield Part(title="Points table", blocks=points_blocks(study, of("points")))
    if study.challenge is not None:
        yield Part(title="Champion and challenger", blocks=challenge_blocks(study.challenge))
    if study.periods is not None:
        yield Part(title="Out of time", blocks=period_blocks(study.periods))
    yield Part(title="How to read this", blocks=[Points(items=_GLOSSARY)])


def _answer(study: Study) -> list[Block]:
    figures, before = study.figures, study.calibration[0]
    said = (
        f"On {plural(figures.users, 'user')} with {plural(figures.bads, 'default')} "
        f"({percent(figures.bad_rate)}), the AUC is {four(figures.auc)} (95% interval "
        f"{four(figures.auc_low)} to {four(figures.auc_high)}), KS {four(figures.ks)}."
    )
    blocks: list[Block] = [said]
    blocks += [_calibrated("as released", before)]
    blocks += [
        _calibrated(f"by {each.name} calibration", each)
        for each in study.calibration
        if each.name == study.judged.calibration
    ]
    for outcome in study.decided[:1]:
        rate = "nobody" if outcome.bad_rate is None else percent(outcome.bad_rate)
        blocks.append(
            f"The cut-offs in force approve {percent(outcome.share)} of these users at once; "
            f"{rate} of them defaulted."
        )
    low = [
        f"{fairness.field} ({at.mark} {at.pd:g})"
        for fairness in study.fairness
        for at in fairness.at
        if at.four_fifths is False
    ]
    if low:
        blocks.append(
            "Below four fifths: groups are approved at rates whose ratio is under .8 by "
            f"{'; '.join(low)}. See the part on groups of people."
        )
    return blocks


def _calibrated(how: str, told: Calibrated) -> str:
    gap = 100 * (told.mean_pd - told.bad_rate)
    verdict = "Nothing here says that they are off"
    if told.p_value < 0.05:
        verdict = "They are off by more than chance explains"
    return (
        f"PDs {how} say {percent(told.mean_pd)} on average, where {percent(told.bad_rate)} came "
        f"({gap:+.2f} percentage points). {verdict} (Hosmer-Lemeshow, p = {told.p_value:.3g})."
    )


def _judged(study: Study) -> list[Block]:
    judged = study.judged
    users = {
        "holdout": "the hold-out users of the contract's split, whom no training has seen",
        "all": "all users of the file; those that this holder trained on are among them, if it "
        "took part: figures on them flatter",
    }[judged.users]
    decision = "as released"
    if judged.calibration:
        decision = (
            f"by {judged.calibration} calibration, each user's PD from a fit on the four fifths "
            "of users that it is not in"
        )
    rows = [
        ("release", f"{judged.release_digest[:16]}, finished {judged.created[:16]}"),
        ("contract", judged.contract_digest[:16]),
        (
            "file",
            f"{judged.file}: {plural(judged.rows, 'row')}, {judged.rejected} rejected, "
            f"{plural(judged.file_users, 'user')}",
        ),
        ("users", f"{study.figures.users:,}: {users}"),
        ("PDs for decisions", decision),
        (
            "cut-offs",
            "the holder's own"
            if judged.own_cut_offs
            else "the contract's"
            if study.decision.decides
            else "none in force; the contract's base rate stands for one",
        ),
        ("loss", f"LGD {study.stakes.lgd:g}, exposure {study.stakes.exposure:g}"),
    ]
    return [Facts(rows=rows), "All of it stays here: counts are exact, of this merchant's data."]


def _figures(study: Study) -> list[Block]:
    figures = study.figures
    rows = [
        ("AUC", four(figures.auc), f"{four(figures.auc_low)} to {four(figures.auc_high)}"),
        (
            "Gini",
            four(figures.gini),
            f"{four(2 * figures.auc_low - 1)} to {four(2 * figures.auc_high - 1)}",
        ),
        ("KS", four(figures.ks), f"at PD {four(figures.ks_pd)}"),
        (
            "average precision",
            four(figures.average_precision),
            f"{four(figures.bad_rate)} by chance",
        ),
        (
            "Brier score",
            four(figures.brier),
            f"{four(figures.bad_rate * (1 - figures.bad_rate))} if all are told the bad rate",
        ),
        ("log loss", four(figures.log_loss), ""),
    ]
    return [Table(heads=("<figure", ">value", "<beside"), widths=(20, 8, 40), rows=rows)]


def _bands(study: Study) -> list[Block]:
    rows = [
        (
            str(band.number),
            str(band.users),
            str(band.bads),
            f"{four(band.pd_low)} to {four(band.pd_high)}",
            f"{band.points_low:.0f} to {band.points_high:.0f}",
            percent(band.bad_rate),
            f"{band.lift:.2f}",
            percent(band.gain),
            f"{band.cumulative_lift:.2f}",
            four(band.ks),
        )
        for band in study.bands
    ]
    heads = (
        ">band",
        ">users",
        ">bads",
        ">PD",
        ">points",
        ">bad rate",
        ">lift",
        ">gain",
        ">cum. lift",
        ">KS",
    )
    widths = (4, 6, 6, 16, 12, 8, 5, 7, 9, 7)
    largest = max(range(len(study.bands)), key=lambda n: study.bands[n].ks)
    return [
        "Tenths of the users, the riskiest first; users of one score are never split. Gain and KS "
        "are of the band and all riskier ones; the largest KS is marked.",
        Table(heads=heads, widths=widths, rows=rows, dense=True, loud=frozenset({largest})),
    ]


def _cut_offs(study: Study) -> list[Block]:
    rows = [
        (
            four(cut.pd),
            cut.mark,
            str(cut.approved),
            percent(cut.approval_rate),
            percent(cut.bad_rate_approved),
            percent(cut.bad_rate_declined),
            money(cut.expected_loss, study.stakes.exposure),
            money(cut.observed_loss, study.stakes.exposure),
        )
        for cut in study.cut_offs
    ]
    heads = (
        ">PD below",
        "<in force",
        ">approved",
        ">share",
        ">bad, approved",
        ">bad, declined",
        ">loss said",
        ">loss seen",
    )
    own = frozenset(number for number, cut in enumerate(study.cut_offs) if cut.mark)
    return [
        "What comes of approving whoever has a PD below each cut-off: the share approved, the bad "
        "rate of those approved and of all others, and the loss for each approved user, as PDs say "
        "it (PD x LGD x exposure) and as outcomes did.",
        Table(heads=heads, widths=(8, 13, 8, 7, 13, 13, 9, 9), rows=rows, dense=True, loud=own),
    ]


def _decisions(study: Study) -> Iterator[Block]:
    for outcomes, name in ((study.decided, "decision"), (study.banded, "band")):
        if outcomes:
            rows = [
                (
                    o.name,
                    str(o.users),
                    percent(o.share),
                    str(o.bads),
                    percent(o.bad_rate),
                    percent(o.mean_pd),
                )
                for o in outcomes
            ]
            heads = (f"<{name}", ">users", ">share", ">bads", ">bad rate", ">mean PD")
            yield Table(heads=heads, widths=(20, 8, 8, 8, 9, 9), rows=rows, dense=True)


_GLOSSARY = (
    "PD: the probability of default. A bad is a user who defaulted.",
    "AUC: how often a user who defaulted has a higher PD than one who did not; .5 is a toss. "
    "Intervals are DeLong's (1988).",
    "KS: the largest distance between the two groups' distributions of scores.",
    "Gain: the share of all defaults found so far; lift: the bad rate over that of all users.",
    "Expected loss is PD x LGD x exposure (Basel Committee 2006). LGD .45 is that of senior "
    "unsecured claims under its foundation approach, not of any merchant's customers: give your "
    "own.",
    "WOE of a cell: ln of its share of users without default over its share of defaults; IV: the "
    "sum of the differences of the shares times WOE (Siddiqi 2006). Where a cell has none of one "
    "of the two, half a user is added to both.",
    "Calibration is judged in five folds: nobody's PD comes from a fit that has seen the user.",
    "Hosmer-Lemeshow: a small p says that PDs and outcomes differ by more than chance. A slope "
    "below 1 says that PDs are too extreme.",
    "Demographic parity compares how often groups are approved; equalized odds, how often those "
    "of each group who repay, and those who do not, are approved. Four fifths is a mark to look "
    "closer at, and no proof of either.",
    "PSI: below .10 scores are stable, from .25 on they have moved much.",
)
