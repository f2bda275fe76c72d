"""How groups of people fare over the federation: outcomes and decisions by protected fields.

Beside the scores' histogram (2, bins), the last evaluation counts each hold-out user by outcome,
code and decision, once for each field of `evaluation.groups`. All of it is one table, row 0 for
users who repaid and row 1 for those who did not:

    columns         what
    bins            score, as in `credit_common.evaluation`
    3 a code        approved, referred to a person, declined; codes in the contract's order, then
                    "(other)" for one that it does not have, and "(missing)"; field after field

A user is in one cell of the scores and in one of each of the G fields, so that the L2 sensitivity
is √(1 + G). Decisions are those of the contract's cut-offs on the model's own probability of
default: a holder's calibration and cut-offs stay with the holder, and so do figures of them.

Figures are ratios of noised counts, with intervals as in `credit_common.intervals`. Those of all
rates of all codes of a field hold together (Bonferroni over codes and kinds of rate, judged or not,
since the noise has a say in which are judged), so that what is said of the highest and the lowest
rate is said of all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from credit_common import intervals
from credit_common.contract import Contract
from credit_common.evaluation import (
    Figure,
    count_users,
    figures_to_json,
    probability,
    relative_score,
    released_noise,
)
from credit_common.fields import ProtectedField
from credit_common.record import OTHER, Record

DECISIONS = ("approve", "refer", "decline")
FEWEST = 30
"""Users of a group, at the least by intervals that hold for all groups, to be judged."""
FOUR_FIFTHS = 0.8
"""Approval rate of a group against the highest one, below which it is looked at (29 CFR 1607.4)."""
BESIDE = ("(other)", "(missing)")
"""Names of the groups beside a field's codes."""


@dataclass(frozen=True, kw_only=True)
class GroupRates:
    """Hold-out users of all holders with one code.

    Attributes:
        name: The code, "(other)" or "(missing)".
        users: Their number, from noised counts.
        bad_rate: Share of them that did not repay. It is None, as all that follows, where the group
            is not judged: it may have fewer than 30 users.
        approved, declined: Shares of them that are; the rest goes to a person.
        approved_good, approved_bad: Share of those who repaid that is approved, and of those who
            did not; None also where these alone may be fewer than 30.
    """

    name: str
    users: Figure
    bad_rate: Figure | None = None
    approved: Figure | None = None
    declined: Figure | None = None
    approved_good: Figure | None = None
    approved_bad: Figure | None = None


@dataclass(frozen=True, kw_only=True)
class GroupGaps:
    """One protected field.

    Attributes:
        field: Its name.
        groups: All codes, "(other)" and "(missing)".
        parity_ratio, parity_difference: Demographic parity: lowest approval rate over the highest,
            and highest less lowest, of the judged groups; None for fewer than two, and the ratio
            where nobody at all is approved.
        odds_difference: Equalized odds (Hardt et al. 2016): the larger of the differences of
            `approved_good` and of `approved_bad`; None where fewer than two groups have both.
        four_fifths: Whether the parity ratio is at least .8: "unclear" where the noise hides it;
            None without a ratio.
    """

    field: str
    groups: tuple[GroupRates, ...]
    parity_ratio: Figure | None
    parity_difference: Figure | None
    odds_difference: Figure | None
    four_fifths: Literal["yes", "no", "unclear"] | None


def count_columns(contract: Contract, round_: int) -> int:
    """Columns of the counts that the evaluation of a round sends, two rows of them."""
    return contract.evaluation.bins + sum(map(group_columns, contract.groups_at(round_)))


def group_columns(field: ProtectedField) -> int:
    """Columns that a field's codes take."""
    return len(DECISIONS) * len(_names(field))


def group_places(contract: Contract, records: Sequence[Record]) -> NDArray[np.int64]:
    """Place of each record's code among those of each field of `evaluation.groups`.

    Returns:
        (records, fields); "(other)" and "(missing)" are the last two places.
    """
    fields = contract.groups_at(contract.training.rounds)
    places = np.zeros((len(records), len(fields)), np.int64)
    for column, field in enumerate(fields):
        place: dict[str | None, int] = {code: i for i, code in enumerate(field.values)}
        place |= {OTHER: len(field.values), None: len(field.values) + 1}
        places[:, column] = [place[record.protected.get(field.name)] for record in records]
    return places


def count_all(
    contract: Contract,
    scores: NDArray[np.float32],
    labels: NDArray[np.float32],
    places: NDArray[np.int64],
    round_: int,
) -> NDArray[np.int64]:
    """Users by cell, of everything that the evaluation of a round counts.

    Args:
        scores: (users, outputs), the model's raw scores; one that is not finite counts as the
            contract's base rate.
        labels: (users,).
        places: (users, fields), from `group_places`.
        round_: Of the request.

    Returns:
        Counts, (2, count_columns(contract, round_)).
    """
    parts = [count_users(contract, scores, labels)]
    fields = contract.groups_at(round_)
    if fields:
        decided = _decided(contract, scores[:, 0])
        for column, field in enumerate(fields):
            cells = group_columns(field)
            at = labels.astype(np.int64) * cells + places[:, column] * len(DECISIONS) + decided
            parts.append(np.bincount(at, minlength=2 * cells).reshape(2, cells))
    return np.concatenate(parts, axis=1)


def read_groups(
    contract: Contract, counts: NDArray[np.float64], holders: int
) -> tuple[GroupGaps, ...]:
    """Figures by group from the released counts of the last evaluation.

    Args:
        counts: Sum of the released tables, (2, columns). Those of an earlier evaluation have the
            scores alone: then there are no figures.
        holders: How many were summed; each has the contract's noise.

    Raises:
        ValueError: If there are neither the scores' columns alone nor all of them.
    """
    bins, last = contract.evaluation.bins, contract.training.rounds
    if counts.shape[1] == bins:
        return ()
    columns = count_columns(contract, last)
    if counts.shape != (2, columns):
        raise ValueError(f"counts of shape {counts.shape}: must be (2, {columns}) or (2, {bins})")
    noise, at, found = released_noise(contract, holders), bins, []
    for field in contract.groups_at(last):
        cells = group_columns(field)
        table = counts[:, at : at + cells].reshape(2, -1, len(DECISIONS))
        found.append(_gaps(field, table, noise))
        at += cells
    return tuple(found)


def groups_to_json(gaps: Sequence[GroupGaps]) -> list[dict[str, Any]]:
    """Plain JSON form: for each field its gaps and groups, as `figures` and `intervals`."""
    return [
        {
            "field": each.field,
            "four_fifths": each.four_fifths,
            **figures_to_json(_figures(each, ("parity_ratio", "parity_difference"), _ODDS)),
            "groups": [
                {"name": group.name, **figures_to_json(_figures(group, _RATES, _OF_A_CLASS))}
                for group in each.groups
            ],
        }
        for each in gaps
    ]


def compared(gaps: GroupGaps) -> str:
    """The gaps of a field in words."""
    said = [
        f"{name} {told(figure)}"
        for name, figure in (
            ("Lowest approval rate over the highest", gaps.parity_ratio),
            ("highest less lowest", gaps.parity_difference),
            ("equalized odds difference", gaps.odds_difference),
        )
        if figure is not None
    ]
    return f"{'; '.join(said)}. {_MARKS[gaps.four_fifths]}".rstrip() if said else _TOO_FEW


def told(figure: Figure) -> str:
    """A share with its interval."""
    value = f"{figure.value:.3f}" if math.isfinite(figure.value) else "unknown"
    return f"{value} ({figure.low:.3f} to {figure.high:.3f})"


_TOO_FEW = "Too few groups to compare."
_MARKS = {
    None: "",
    "yes": "The four-fifths mark is kept.",
    "no": "The four-fifths mark is MISSED: look at it.",
    "unclear": "Whether the four-fifths mark is kept, the noise hides.",
}
_ODDS = ("odds_difference",)
_KINDS = 5
"""Kinds of rate of a group."""
_RATES = ("users", "bad_rate", "approved", "declined")
_OF_A_CLASS = ("approved_good", "approved_bad")


def _figures(of: object, *names: tuple[str, ...]) -> dict[str, Figure]:
    found = {name: getattr(of, name) for group in names for name in group}
    return {name: figure for name, figure in found.items() if figure is not None}


def _names(field: ProtectedField) -> tuple[str, ...]:
    return (*field.values, *BESIDE)


def _decided(contract: Contract, logits: ArrayLike) -> NDArray[np.int64]:
    """Place in DECISIONS of each score."""
    task, decision = contract.task, contract.decision
    pds = probability(relative_score(logits, task.base_rate), task.base_rate)
    assert decision.approve_below is not None  # Contract checks both
    assert decision.decline_from is not None
    at = np.array([decision.approve_below, decision.decline_from])
    decided: NDArray[np.int64] = np.searchsorted(at, pds, side="right").astype(np.int64)
    return decided


def _gaps(field: ProtectedField, table: NDArray[np.float64], noise: float) -> GroupGaps:
    """`table` is (2, codes, decisions)."""
    names = _names(field)
    groups = tuple(_rates(name, table[:, i], noise, len(names)) for i, name in enumerate(names))
    ratio, difference = _spread([g.approved for g in groups if g.approved])
    odds = [
        _spread([found for g in groups if (found := getattr(g, name))])[1] for name in _OF_A_CLASS
    ]
    both = [figure for figure in odds if figure is not None]
    return GroupGaps(
        field=field.name,
        groups=groups,
        parity_ratio=ratio,
        parity_difference=difference,
        odds_difference=_largest(both) if len(both) == len(odds) else None,
        four_fifths=None if ratio is None else _mark(ratio),
    )


def _rates(name: str, cells: NDArray[np.float64], noise: float, codes: int) -> GroupRates:
    """`cells` is (2, decisions), of one of `codes` codes of its field."""
    users = _number(cells, noise)
    level = 1 - (1 - intervals.LEVEL) / codes
    if not _number(cells, noise, level).low >= FEWEST:
        return GroupRates(name=name, users=users)
    approved, declined, bad = np.zeros((3, *cells.shape))
    approved[:, 0], declined[:, 2], bad[1] = 1, 1, 1

    def share(chosen: NDArray[np.float64], among: NDArray[np.float64]) -> Figure:
        low, high = intervals.share(among, chosen, noise, 1 - (1 - level) / _KINDS)
        value = float((among * chosen).sum() / among.sum())
        return Figure(value=min(max(value, 0.0), 1.0), low=low, high=high)

    enough = [_number(cells[row], noise, level).low >= FEWEST for row in range(2)]
    of_class = [share(approved[row], cells[row]) if enough[row] else None for row in range(2)]
    return GroupRates(
        name=name,
        users=users,
        bad_rate=share(bad, cells),
        approved=share(approved, cells),
        declined=share(declined, cells),
        approved_good=of_class[0],
        approved_bad=of_class[1],
    )


def _number(cells: NDArray[np.float64], noise: float, level: float = intervals.LEVEL) -> Figure:
    """How many users there are in noised cells."""
    value = float(cells.sum())
    margin = intervals.normal(level) * noise * math.sqrt(cells.size)
    low, middle, high = (max(each, 0.0) for each in (value - margin, value, value + margin))
    return Figure(value=middle, low=low, high=high)


def _spread(rates: Sequence[Figure]) -> tuple[Figure | None, Figure | None]:
    """Lowest over highest, and highest less lowest, of at least two rates.

    Whatever the rates are inside their intervals, the lowest is between the lowest of the lower
    ends and the lowest of the upper ones, and so is the highest.
    """
    if len(rates) < 2:
        return None, None
    values = [rate.value for rate in rates]
    lows, highs = [rate.low for rate in rates], [rate.high for rate in rates]
    difference = Figure(
        value=max(values) - min(values),
        low=max(max(lows) - min(highs), 0.0),
        high=max(highs) - min(lows),
    )
    if max(highs) <= 0:
        return None, difference
    ratio = Figure(
        value=min(values) / max(values) if max(values) > 0 else float("nan"),
        low=min(lows) / max(highs),
        high=min(min(highs) / max(lows), 1.0) if max(lows) > 0 else 1.0,
    )
    return ratio, difference


def _largest(figures: Sequence[Figure]) -> Figure:
    return Figure(
        value=max(f.value for f in figures),
        low=max(f.low for f in figures),
        high=max(f.high for f in figures),
    )


def _mark(ratio: Figure) -> Literal["yes", "no", "unclear"]:
    if ratio.low >= FOUR_FIFTHS:
        return "yes"
    return "no" if ratio.high < FOUR_FIFTHS else "unclear"
