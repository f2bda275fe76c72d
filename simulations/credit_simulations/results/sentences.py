"""The answers in words: a difference, its interval, and whether it is beyond noise."""

from collections.abc import Iterator, Sequence

from credit_simulations.results.arms import level
from credit_simulations.results.claims import Answer, Spread, answers, headline
from credit_simulations.results.rows import groups, settings
from credit_simulations.results.trials import Setting, Trial


def place(setting: Setting) -> str:
    """A setting in words.

    >>> place(Setting(data="taiwan", partition="iid", holders=1))
    'taiwan, 1 holder (iid)'
    """
    return f"{setting.data}, {counted(setting.holders, 'holder')} ({setting.partition})"


def at(epsilon: float | None) -> str:
    """ε in words."""
    return "without DP" if epsilon is None else f"at ε = {level(epsilon)}"


def shown(text: str) -> str:
    """Words from a file on one line, without characters that would steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def counted(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def signed(value: float) -> str:
    """A difference to three decimals, with its sign; one that rounds to nothing has none."""
    text = f"{value:+.3f}"
    return text.replace("-", "\N{MINUS SIGN}") if text.strip("+-0.") else "0.000"


def interval(spread: Spread) -> str:
    """Where the mean may lie, and by how many seeds."""
    if spread.low is None or spread.high is None:
        return "one seed"
    return f"95% interval {signed(spread.low)} to {signed(spread.high)}, {spread.seeds} seeds"


def verdict(spread: Spread, more: str, less: str) -> str:
    """One word for a table: `more`, `less`, or that it cannot be told."""
    if spread.seeds == 1:
        return "one seed"
    return {1: more, -1: less, 0: "within noise"}[spread.sign]


def gain_sentence(answer: Answer) -> str:
    """What the federation brings over training alone."""
    gain, when = answer.gain, at(answer.epsilon)
    if gain is None:
        return (
            f"What a merchant gains over training alone {when} cannot be told: federated and "
            "local_only share no seed here."
        )
    if gain.seeds > 1 and gain.sign == 0:
        words = (
            "the gain over training alone is within noise: "
            f"{signed(gain.mean)} AUC within a merchant's own users ({interval(gain)})."
        )
    else:
        moves = "gains" if gain.mean >= 0 else "loses"
        words = (
            f"a merchant {moves} {abs(gain.mean):.3f} AUC within its own users against training "
            f"alone ({interval(gain)}{', so noise is unknown' if gain.seeds == 1 else ''})."
        )
    return f"{when[0].upper()}{when[1:]}, {words}{_who(answer)}"


def cost_sentence(found: Sequence[Answer]) -> str:
    """What each ε costs in AUC over all users, against the same without DP."""
    told = [(answer.epsilon, answer.cost) for answer in found if answer.cost is not None]
    if not told:
        return "What ε costs cannot be told: the same seeds were not run with and without DP."
    parts = []
    for epsilon, cost in reversed(told):
        words = f"ε = {level(epsilon)} costs {_amount(cost.mean)}"
        if cost.low is not None and cost.high is not None:
            words += f" ({signed(cost.low)} to {signed(cost.high)})"
            words += {1: "", 0: ", within noise", -1: ", better than without"}[cost.sign]
        parts.append(words)
    seeds = sorted({cost.seeds for _, cost in told})
    over = (
        "one seed" if seeds == [1] else f"95% intervals over {' to '.join(map(str, seeds))} seeds"
    )
    return (
        f"Against the same training without DP, in AUC over all users ({over}): {'; '.join(parts)}."
    )


def answers_told(trials: Sequence[Trial]) -> Iterator[str]:
    """Both answers for each setting, a line each."""
    grouped = groups(trials)
    for where in settings(trials).values():
        for setting in where:
            every = answers(grouped, setting)
            answer = headline(every)
            if answer is not None:
                told = f"{place(setting)}. {gain_sentence(answer)} {cost_sentence(every)}"
                yield shown(told)


def lose(number: int) -> str:
    """The verb for a number of merchants."""
    return "loses" if number == 1 else "lose"


def _who(answer: Answer) -> str:
    merchants, losers = answer.merchants, answer.losers
    if not merchants:
        return ""
    if not losers:
        return f" All {len(merchants)} gain." if len(merchants) > 1 else ""
    words = f" {len(losers)} of {counted(len(merchants), 'merchant')} {lose(len(losers))}"
    if losers[0].gain.seeds == 1:
        return f"{words}."
    sure = sum(merchant.gain.sign < 0 for merchant in losers)
    if sure in (0, len(losers)):
        return f"{words}, {'beyond' if sure else 'within'} noise."
    return f"{words}, {sure} of them beyond noise."


def _amount(cost: float) -> str:
    return f"{cost:.3f}" if cost >= 0 else signed(cost)
