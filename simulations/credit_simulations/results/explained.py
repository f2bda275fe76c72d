"""What a reader has to know to read the figures: what each arm is, and how ε is meant."""

from collections.abc import Iterable, Iterator, Sequence

from credit_simulations.results.arms import MEANING, UNKNOWN, label, level, order
from credit_simulations.results.sentences import counted
from credit_simulations.results.trials import Trial, Trials


def arms_told(trials: Iterable[Trial]) -> list[tuple[str, str]]:
    """The arms that were run, each with what it is."""
    return [
        (label(arm), MEANING.get(arm, UNKNOWN))
        for arm in sorted({trial.arm for trial in trials}, key=order)
    ]


def epsilon_told(trials: Sequence[Trial]) -> Iterator[str]:
    """How ε is meant: a paragraph each."""
    private = [trial for trial in trials if trial.epsilon is not None]
    deltas = sorted({trial.delta for trial in private if trial.delta is not None})
    at = f" at δ = {', '.join(f'{delta:g}' for delta in deltas)}" if deltas else ""
    yield (
        f"ε bounds what all messages of a holder together tell of any one of its users{at}. The "
        "unit is one user of one holder, with all of that user's records; two data sets are "
        "neighbours if one has that user more (add or remove). Of central arms, the unit is one "
        "user of the pool."
    )
    yield (
        "It is composed over all rounds by privacy loss distributions (dp-accounting), and "
        "noise is drawn anew for each trial: the mechanism has no seed. The ε of an axis is the "
        "budget."
    )
    spent = {
        level(trial.epsilon): max(
            other.epsilon_spent or 0.0 for other in private if other.epsilon == trial.epsilon
        )
        for trial in sorted(private, key=lambda t: t.epsilon or 0.0)
    }
    told = [f"{most:.2f} of {budget}" for budget, most in spent.items() if most]
    if told:
        yield f"Spent at most: {', '.join(told)}."
    yield (
        "ε = ∞ is the same training without DP. Smaller is more private: an observer's odds on any "
        "one user move by a factor of at most e to the power of ε, save for a slack of δ."
    )


def intervals_told() -> Iterator[str]:
    """How intervals are meant: a paragraph each."""
    yield (
        "A gain is the federated minus the local AUC, and a cost the AUC without DP minus that "
        "under ε, each taken within a seed and then averaged. A seed draws who is held out, the "
        "holders where they are drawn, and (through no seed at all) the noise. The interval is "
        "Student's over seeds, at 95%, with the variance of Nadeau and Bengio (2003): splits of "
        "one set of users share most of them. Where it spans zero, the difference is within noise."
    )
    yield (
        "A merchant's own interval is as wide as its hold-out is small. Among many merchants, one "
        "in twenty intervals misses by chance."
    )


def file_told(read: Trials) -> Iterator[str]:
    """What was read, and what of it does not count."""
    trials = read.trials
    seeds = len({trial.seed for trial in trials})
    hours = sum(trial.seconds for trial in trials) / 3600
    yield (
        f"{counted(len(trials), 'trial')} over {counted(seeds, 'seed')}, {hours:,.1f} hours of "
        "wall time."
    )
    if read.broken:
        yield "The last line is unfinished, as after a crash, and was skipped."
    if read.replaced:
        yield (
            f"{counted(read.replaced, 'line')} left out: a later one is of the same configuration."
        )
    if read.superseded:
        yield (
            f"{counted(read.superseded, 'trial')} left out: a later one is of the same arm, ε and "
            "seed under another configuration."
        )
