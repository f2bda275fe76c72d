"""What a privacy report says to a data-protection officer: the answer first, then all parts.

Text and page both show what is said here; the evidence for it is in
`credit_client.report.evidence`.
"""

import math
from collections.abc import Iterator

from credit_client.page.blocks import Block, Facts, Loud, Part, Points, Table
from credit_client.report.evidence import (
    accounting,
    audit,
    check,
    ledger,
    left,
    mechanism,
)
from credit_client.report.numbers import Report, bound, exact, minute, percent
from credit_client.terminal import up

_SIDES = {"train": "training users", "holdout": "hold-out users"}


def parts(report: Report) -> Iterator[Part]:
    """All parts of a report, in the order in which they are read."""
    yield Part(title="The answer", blocks=_answer(report))
    yield Part(title="For whom it holds, and against whom", blocks=_for_whom(report))
    yield Part(title="How users are hidden", blocks=mechanism(report))
    yield Part(title="How epsilon was computed", blocks=accounting(report))
    yield Part(title="What left this holder", blocks=left(report))
    yield Part(title="What never leaves", blocks=[Points(items=report["never_sent"])])
    yield Part(title="The ledger", blocks=ledger(report))
    yield Part(title="How the settings were chosen", blocks=[str(report["tuning"])])
    yield Part(title="Attacks that were tried", blocks=audit(report))
    excluded: list[Block] = [Points(items=report["excluded"]), str(report["structure"])]
    yield Part(title="What is not claimed", blocks=excluded)
    yield Part(title="How to check this report", blocks=check(report))


def _answer(report: Report) -> list[Block]:
    whole = not report["overrides"]
    told = report if whole else None
    blocks: list[Block] = []
    if told is None:
        of_entries = report["epsilon_of_entries"]
        lost = report["lost_entries"]
        blocks = [
            Loud(
                words="EPSILON IS UNKNOWN. "
                + (f"At least {lost} entries" if lost else "Entries")
                + f" of the ledger of {report['holder']} were lost, and with them what they spent. "
                "No bound can be given for what was learnt of its users. A person signed for the "
                "loss, so that the holder may go on:"
            ),
            Table(
                heads=("<signed, UTC", "<reason", ">entry"),
                widths=(20, 60, 7),
                rows=[
                    (minute(word["time"]), word["reason"], str(word["sequence"]))
                    for word in report["overrides"]
                ],
            ),
            f"The entries that are left spend epsilon {bound(of_entries['add_remove'])} (add or "
            f"remove) and {bound(of_entries['replace_one'])} (one record changed) at delta "
            f"{exact(report['delta'])}. The truth is more.",
        ]
    else:
        blocks = [
            f"Whoever sees all that {report['holder']} has ever sent learns of any one of its "
            f"users at most what epsilon = {bound(report['epsilon'])} allows, at delta = "
            f"{exact(report['delta'])}. That is a bound for the worst case: for any user, any "
            "attack, and any knowledge of all the others.",
            *_meaning(report),
        ]
    rows = [
        (f"{_SIDES[name]} (add or remove one)", bound(value))
        for name, value in report["epsilon_by_account"].items()
    ]
    if told is not None:
        rows.insert(0, ("any user of this holder (add or remove one)", bound(told["epsilon"])))
        rows.append(
            ("any user of this holder (one record changed)", bound(told["epsilon_replace_one"]))
        )
        rows += [
            (f"a user of {k} holders that each spent this much (add or remove)", bound(value))
            for k, value in told["epsilon_shared"].items()
        ]
        rows.append(("budget: the ledger refuses what would pass it", exact(told["budget"])))
        rows.append(("left of the budget", _down(told["budget"], told["epsilon"])))
    blocks.append(Table(heads=("<for", ">epsilon"), widths=(60, 9), rows=rows))
    if report["accounts_add"]:
        blocks.append(
            "Users were split into training and hold-out users in more than one way, so that one "
            "user may be in both accounts: they add up."
        )
    return blocks


def _meaning(report: Report) -> Iterator[Block]:
    meaning = report["meaning"]
    if meaning is None:
        yield "An epsilon of this size bounds nothing that matters."
        return
    yield (
        "Epsilon 0 would tell nothing, and less is better. Before any message, somebody may have "
        "held it likely that a certain person is among the users. The messages move the odds of it "
        f"by a factor of at most {_factor(meaning['odds_factor'])} (e to the power of epsilon), "
        "save for a slack of delta, which is to be small beside 1 divided by the number of users:"
    )
    yield Table(
        heads=(">likely before", ">likely after, at most"),
        widths=(20, 26),
        rows=[
            (percent(float(before)), percent(after))
            for before, after in meaning["belief_after"].items()
        ],
    )


def _for_whom(report: Report) -> list[Block]:
    users = f"{report['size_class']}, which stands for {report['size_class_users']:,} users"
    rows = [
        ("holder", report["holder"]),
        ("federation", report["federation"]),
        ("purpose", report["purpose"] or "not stated in the contract"),
        ("predicts", report["predicts"]),
        ("size class", f"{users}; public, declared by a person, never counted"),
        ("unit", report["unit"]),
        ("rows of a user", report["row_rule"]),
        ("neighbours", report["adjacency"]),
        ("against whom", report["adversary"]),
    ]
    return [Facts(rows=rows)]


def _factor(factor: float) -> str:
    return f"{math.ceil(factor):,}" if factor >= 100 else f"{up(factor)}"


def _down(budget: float, spent: float) -> str:
    """What is left by the ε that is shown, so that the two add up to the budget."""
    left = math.floor(budget * 100 - math.ceil(spent * 100)) / 100
    return f"{max(left, 0):.2f}"
