"""How groups of people fare: approval, errors, order and calibration by protected attribute.

Figures are fairlearn's, of the prediction "approved" and the outcome "repaid": demographic parity
is that groups are approved at the same rate; equalized odds that, of those who repay, and of those
who do not, groups are approved at the same rate (Hardt et al. 2016). The four-fifths rule is a
mark, not a verdict: a group's approval rate below .8 of that of the group with the highest one is
looked at (29 CFR 1607.4 D).

Groups of fewer than 30 users are counted and not judged: their rates would say little, and much of
few people.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from credit_client.validation.sample import FEWEST_OF_A_CLASS, Sample
from credit_common.contract import Contract
from credit_common.groups import BESIDE
from credit_common.metrics import auc_exact, brier_exact
from credit_common.record import OTHER

FEWEST_OF_A_GROUP = 30
FOUR_FIFTHS = 0.8


@dataclass(frozen=True, kw_only=True)
class Group:
    """Users with one code of a protected field.

    Attributes:
        name: The code, "(other)" for one that the contract does not have, or "(missing)".
        users: Their number.
        judged: Whether they are enough; all else is None where not.
        bad_rate, mean_pd: What came, and what was said.
        auc: Within the group; None also where a class has fewer than 5 users.
        brier: Mean squared difference of PD and outcome.
    """

    name: str
    users: int
    judged: bool
    bad_rate: float | None = None
    mean_pd: float | None = None
    auc: float | None = None
    brier: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rates:
    """A judged group at a cut-off.

    Attributes:
        name: Of the group.
        approved: Share of its users that is approved.
        approved_good, approved_bad: Share of those who repay, and who do not; None where a class
            has fewer than 5 users.
    """

    name: str
    approved: float
    approved_good: float | None
    approved_bad: float | None


@dataclass(frozen=True, kw_only=True)
class AtCutOff:
    """How groups fare where whoever has a PD below a cut-off is approved.

    Attributes:
        mark, pd: The cut-off.
        groups: The judged ones.
        parity_difference, parity_ratio: Demographic parity: highest approval rate less the lowest,
            and lowest over highest; None where nobody is approved.
        odds_difference, odds_ratio: Equalized odds: the larger of the differences, and the smaller
            of the ratios, of the two shares; over groups that have both; None where these are
            fewer than two, or no ratio exists.
        four_fifths: Whether the parity ratio is at least .8.
    """

    mark: str
    pd: float
    groups: tuple[Rates, ...]
    parity_difference: float
    parity_ratio: float | None
    odds_difference: float | None
    odds_ratio: float | None
    four_fifths: bool | None


@dataclass(frozen=True, kw_only=True)
class Fairness:
    """One protected field.

    Attributes:
        field: Its name.
        groups: In the contract's order, those that nobody is in left out.
        at: Nothing where fewer than two groups are judged.
    """

    field: str
    groups: tuple[Group, ...]
    at: tuple[AtCutOff, ...]


def fairness(
    contract: Contract, sample: Sample, marks: Sequence[tuple[str, float]]
) -> tuple[Fairness, ...]:
    """Every protected field of the contract, at each cut-off (name, PD)."""
    found = []
    for field in contract.protected_fields:
        codes = np.array(
            [_named(example.record.protected.get(field.name)) for example in sample.examples]
        )
        names = [name for name in (*field.values, *BESIDE) if (codes == name).any()]
        groups = tuple(_group(name, codes == name, sample) for name in names)
        judged = [group.name for group in groups if group.judged]
        own = np.isin(codes, judged)
        at: tuple[AtCutOff, ...] = ()
        if len(judged) > 1:
            at = tuple(
                _at(mark, pd, sample.pds[own], sample.labels[own], codes[own], judged)
                for mark, pd in marks
            )
        found.append(Fairness(field=field.name, groups=groups, at=at))
    return tuple(found)


def _named(code: str | None) -> str:
    other, missing = BESIDE
    return missing if code is None else other if code == OTHER else code


def _group(name: str, own: NDArray[np.bool_], sample: Sample) -> Group:
    users, labels, pds = int(own.sum()), sample.labels[own], sample.pds[own]
    if users < FEWEST_OF_A_GROUP:
        return Group(name=name, users=users, judged=False)
    return Group(
        name=name,
        users=users,
        judged=True,
        bad_rate=float(labels.mean()),
        mean_pd=float(pds.mean()),
        auc=auc_exact(sample.logits[own], labels) if _both(labels) else None,
        brier=brier_exact(pds, labels),
    )


def _both(labels: NDArray[np.int64]) -> bool:
    bads = int(labels.sum())
    return min(bads, labels.size - bads) >= FEWEST_OF_A_CLASS


def _at(
    mark: str,
    pd: float,
    pds: NDArray[np.float64],
    labels: NDArray[np.int64],
    codes: NDArray[np.str_],
    names: Sequence[str],
) -> AtCutOff:
    from fairlearn.metrics import (
        MetricFrame,
        false_positive_rate,
        selection_rate,
        true_positive_rate,
    )

    repaid, approved = 1 - labels, (pds < pd).astype(np.int64)
    # Two frames a cut-off: fairlearn's functions for each figure would make one each, slowly.
    parity = MetricFrame(
        metrics=selection_rate, y_true=repaid, y_pred=approved, sensitive_features=codes
    )
    ratio = float(parity.ratio()) if approved.any() else None
    whole = [str(code) for code in np.unique(codes) if _both(labels[codes == code])]
    shares: dict[str, dict[str, float]] = {"good": {}, "bad": {}}
    difference = odds_ratio = None
    if whole:
        own = np.isin(codes, whole)
        odds = MetricFrame(
            metrics={"good": true_positive_rate, "bad": false_positive_rate},
            y_true=repaid[own],
            y_pred=approved[own],
            sensitive_features=codes[own],
        )
        shares = {name: odds.by_group[name].astype(float).to_dict() for name in shares}
        if len(whole) > 1:
            difference = float(odds.difference().max())
            some = all(max(share.values()) > 0 for share in shares.values())
            odds_ratio = float(odds.ratio().min()) if some else None
    return AtCutOff(
        mark=mark,
        pd=pd,
        groups=tuple(
            Rates(
                name=code,
                approved=float(parity.by_group[code]),
                approved_good=shares["good"].get(code),
                approved_bad=shares["bad"].get(code),
            )
            for code in names
        ),
        parity_difference=float(parity.difference()),
        parity_ratio=ratio,
        odds_difference=difference,
        odds_ratio=odds_ratio,
        four_fifths=None if ratio is None else ratio >= FOUR_FIFTHS,
    )
