"""What a merchant asks, answered from trials: what do I gain over training alone, what does ε cost.

Both are differences between two arms with the same seeds, so that what a seed does to both cancels.
Their interval is Student's over seeds, at 95%, with the variance of Nadeau and Bengio (Machine
Learning 52, 2003): splits of one set of users share most of them, so that their mean is less sure
than that of as many independent figures.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from credit_simulations.results.arms import ascending
from credit_simulations.results.rows import Groups, mean_of
from credit_simulations.results.trials import Setting, Trial

LEVEL = 0.95
READ_AT = 8.0
"""The ε at which a page's first sentence is told, if it was run: the packaged contracts' own."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over seeds and its interval; `low` and `high` are None for one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 if all of the interval is on that side of zero, else 0: within noise."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True, kw_only=True)
class Merchant:
    """What one holder gains over training alone, in AUC within its own users.

    Attributes:
        users: Hold-out users, in the mean over seeds.
    """

    name: str
    users: float
    gain: Spread

    @property
    def loses(self) -> bool:
        """Whether it does, in the mean over seeds."""
        return self.gain.mean < 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Both answers for one setting at one ε.

    Attributes:
        gain: Mean over holders of federated minus local AUC within the holder; None where the
            trials for it are missing.
        cost: AUC without DP minus that under ε; None without DP, or where trials are missing.
        merchants: By gain, the biggest first; none where each seed draws holders of its own.
    """

    setting: Setting
    epsilon: float | None
    gain: Spread | None
    cost: Spread | None
    merchants: Sequence[Merchant]

    @property
    def losers(self) -> list[Merchant]:
        """Merchants that lose."""
        return [merchant for merchant in self.merchants if merchant.loses]


def spread(values: Iterable[float], overlap: float) -> Spread | None:
    """Mean and interval of one figure over seeds; None without any.

    The variance of the mean is (1 / seeds + overlap) times that of the figures.

    Args:
        values: One of each seed.
        overlap: Of the splits, see `overlap_of`; 0 if they were independent.

    >>> spread([0.25], 0.0)
    Spread(mean=0.25, low=None, high=None, seeds=1)
    """
    from scipy.special import stdtrit  # slow to import

    found = list(values)
    if not found:
        return None
    mean = statistics.fmean(found)
    if len(found) == 1:
        return Spread(mean=mean, low=None, high=None, seeds=1)
    quantile = float(stdtrit(len(found) - 1, (1 + LEVEL) / 2))
    half = quantile * statistics.stdev(found) * math.sqrt(1 / len(found) + overlap)
    return Spread(mean=mean, low=mean - half, high=mean + half, seeds=len(found))


def overlap_of(trials: Iterable[Trial]) -> float:
    """Hold-out users for each training user, at the most: Nadeau and Bengio's n2 / n1."""
    share = max((1 / t.folds if t.folds else t.held_out for t in trials), default=0.0)
    return share / (1 - share)


def answers(groups: Groups, setting: Setting) -> list[Answer]:
    """Both answers at each ε of the federated arm, ascending, without DP last."""
    alone = _by_seed(groups.get((setting, "local_only", None), []))
    without = _by_seed(groups.get((setting, "federated", None), []))
    found = []
    for epsilon in epsilons(groups, setting):
        ours = groups[(setting, "federated", epsilon)]
        here, overlap = _by_seed(ours), overlap_of(ours)
        pairs = [(here[seed], alone[seed]) for seed in sorted(here.keys() & alone.keys())]
        lost = () if epsilon is None else sorted(here.keys() & without.keys())
        found.append(
            Answer(
                setting=setting,
                epsilon=epsilon,
                gain=spread(_mean_gains(pairs), overlap),
                cost=spread((without[seed].auc - here[seed].auc for seed in lost), overlap),
                merchants=_merchants(pairs, overlap) if _same_everywhere(setting) else (),
            )
        )
    return found


def epsilons(groups: Groups, setting: Setting, arm: str = "federated") -> list[float | None]:
    """The ε at which an arm was run, ascending, without DP last."""
    return sorted((e for s, a, e in groups if s == setting and a == arm), key=ascending)


def best_possible(groups: Groups, setting: Setting) -> float | None:
    """The AUC that nothing can pass on the federated arm's hold-out users, mean over seeds.

    None where nobody knows: simulated data alone have one.
    """
    trials = (
        t for (s, a, _), own in groups.items() if (s, a) == (setting, "federated") for t in own
    )
    return mean_of({trial.seed: trial.best_auc for trial in trials}.values())


def headline(found: Sequence[Answer]) -> Answer | None:
    """The answer to read first: at ε = 8, or the largest ε there is, or without DP."""
    if not found:
        return None
    finite = [answer for answer in found if answer.epsilon is not None]
    at = [answer for answer in finite if answer.epsilon == READ_AT]
    return (at or finite[-1:] or found)[0]


def _mean_gains(pairs: Sequence[tuple[Trial, Trial]]) -> list[float]:
    each = [list(_gains(*pair).values()) for pair in pairs]
    return [statistics.fmean(gains) for gains in each if gains]


def _gains(ours: Trial, alone: Trial) -> dict[str, float]:
    """Holder -> its gain, where both AUCs are defined."""
    gains = {}
    for name, here in ours.in_holder.items():
        there = alone.in_holder.get(name)
        if there is not None and here.auc is not None and there.auc is not None:
            gains[name] = here.auc - there.auc
    return gains


def _same_everywhere(setting: Setting) -> bool:
    """Whether a holder's name is the same holder in each trial."""
    return setting.partition.startswith("natural")


def _merchants(pairs: Sequence[tuple[Trial, Trial]], overlap: float) -> list[Merchant]:
    values: dict[str, list[float]] = {}
    users: dict[str, list[int]] = {}
    for ours, alone in pairs:
        for name, gain in _gains(ours, alone).items():
            values.setdefault(name, []).append(gain)
            users.setdefault(name, []).append(ours.in_holder[name].users)
    found = []
    for name, gains in values.items():
        over_seeds = spread(gains, overlap)
        assert over_seeds is not None  # there is no holder without a gain
        found.append(Merchant(name=name, users=statistics.fmean(users[name]), gain=over_seeds))
    return sorted(found, key=lambda merchant: (-merchant.gain.mean, merchant.name))


def _by_seed(trials: Iterable[Trial]) -> Mapping[int, Trial]:
    return {trial.seed: trial for trial in trials}
