"""The model card's part on groups of people: approval, errors and gaps by protected field.

It follows from the released counts of the last evaluation, so that it costs no further privacy.
"""

from credit_common.card_points import table_cell
from credit_common.claim import Facts, released_groups
from credit_common.contract import Contract
from credit_common.groups import FEWEST, GroupGaps, GroupRates, compared, told

NOT_COUNTED = "- Nothing here shows that it treats groups of people alike. Measure that."
"""What a card without this part says of groups."""
COUNTED = (
    "- What it says of groups holds at the contract's cut-offs for the holders' hold-out users "
    "together; one holder's may fare otherwise."
)


def groups_part(contract: Contract, facts: Facts) -> str | None:
    """Markdown; None where the release's counts are not by groups."""
    gaps = released_groups(contract, facts)
    if not gaps:
        return None
    decision = contract.decision
    noised = ", with noise for their privacy" if contract.privacy.private else ""
    blocks = [
        "## Groups",
        f"Hold-out users of {facts.evaluated} holders by protected field{noised}: approved below a "
        f"probability of default of {decision.approve_below:g}, declined from "
        f"{decision.decline_from:g}, by the model's own probability. Groups that may have fewer "
        f"than {FEWEST} users are not judged. The intervals of all rates of a field hold together, "
        "95 times in 100, for these users' counts without the noise.",
        *(block for each in gaps for block in _field(each)),
    ]
    return "\n\n".join(blocks)


def _field(gaps: GroupGaps) -> list[str]:
    heads = ("users", "approved", "declined", "of good approved", "of bad approved", "bad rate")
    table = [f"| `{gaps.field}` | {' | '.join(heads)} |", "|---" + "|---:" * len(heads) + "|"]
    table += [_row(group) for group in gaps.groups if group.approved or group.users.high >= 1]
    return ["\n".join(table), compared(gaps)]


def _row(group: GroupRates) -> str:
    rates = (
        group.approved,
        group.declined,
        group.approved_good,
        group.approved_bad,
        group.bad_rate,
    )
    cells = " | ".join("" if rate is None else told(rate) for rate in rates)
    return f"| {table_cell(group.name)} | {round(group.users.value)} | {cells} |"
