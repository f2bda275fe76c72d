"""The parts of a model report that set two models, or two periods, beside each other."""

from credit_client.page.blocks import Block, Table
from credit_client.validation.challenger import Challenge
from credit_client.validation.periods import OutOfTime, Period
from credit_client.validation.told import four, percent, plural, signed


def challenge_blocks(challenge: Challenge) -> list[Block]:
    """Two models side by side, and who is swapped."""
    one, other = challenge.champion, challenge.challenger
    names = (
        ("AUC", "auc"),
        ("KS", "ks"),
        ("Gini", "gini"),
        ("Brier score", "brier"),
        ("log loss", "log_loss"),
        ("mean PD", "mean_pd"),
    )
    rows = [
        (
            name,
            four(getattr(one, key)),
            four(getattr(other, key)),
            signed(getattr(other, key) - getattr(one, key)),
        )
        for name, key in names
    ]
    p = "" if challenge.p_value is None else f", p = {challenge.p_value:.3g}"
    better = "The two cannot be told apart"
    if challenge.low > 0:
        better = "The challenger orders users better"
    elif challenge.high < 0:
        better = "The champion orders users better"
    swaps = [
        (o.name, str(o.users), percent(o.share), str(o.bads), percent(o.bad_rate))
        for o in challenge.swaps
    ]
    left = f"; {plural(challenge.left_out, 'user')} of the champion left out"
    return [
        f"{better}: the AUC differs by {signed(challenge.auc_difference)} (95% interval "
        f"{signed(challenge.low)} to {signed(challenge.high)}{p}) on "
        f"{plural(challenge.users, 'user')} that both may be judged on"
        f"{left if challenge.left_out else ''}.",
        Table(
            heads=("<figure", ">champion", ">challenger", ">difference"),
            widths=(20, 10, 10, 10),
            rows=rows,
            dense=True,
        ),
        f"At the champion's cut-off ({challenge.mark} {challenge.champion_pd:g}), and the "
        f"challenger's that approves as many (PD below {four(challenge.challenger_pd)}):",
        Table(
            heads=("<users", ">number", ">share", ">bads", ">bad rate"),
            widths=(24, 8, 8, 8, 9),
            rows=swaps,
            dense=True,
        ),
    ]


def period_blocks(periods: OutOfTime) -> list[Block]:
    """Two periods side by side."""
    names = (
        ("bad rate", "bad_rate"),
        ("mean PD", "mean_pd"),
        ("AUC", "auc"),
        ("AUC from", "auc_low"),
        ("AUC to", "auc_high"),
        ("KS", "ks"),
        ("Brier score", "brier"),
        ("log loss", "log_loss"),
    )
    every = (periods.before, periods.after)
    rows = [("users", *(str(period.users) for period in every))]
    rows += [("from", *(p.first for p in every)), ("to", *(p.last for p in every))]
    rows += [(name, *(_figure(period, key) for period in every)) for name, key in names]
    blocks: list[Block] = [
        Table(
            heads=("<", f">before {periods.since}", f">from {periods.since} on"),
            widths=(14, 24, 24),
            rows=rows,
        )
    ]
    for period, words in ((periods.before, "before"), (periods.after, "after")):
        if period.why_not:
            blocks.append(f"The users {words} are not judged: {period.why_not}.")
    if periods.psi is not None:
        moved = {"stable": "stable", "shift": "have shifted", "large": "have moved much"}
        blocks.append(
            f"PSI of the scores over tenths of the first period: {four(periods.psi)} "
            f"({moved[str(periods.psi_band)]}); where nothing moves, so many users have about "
            f"{four(periods.psi_by_chance)} by chance."
        )
    else:
        blocks.append("PSI is not told: a period has fewer than 50 users.")
    if periods.untimed:
        blocks.append(f"{plural(periods.untimed, 'user')} without a time: in neither.")
    return blocks


def _figure(period: Period, key: str) -> str:
    return four(getattr(period.figures, key)) if period.figures else ""
