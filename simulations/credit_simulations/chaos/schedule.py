"""Which faults strike a run, and when: drawn from a public seed and the run's number.

The seed shapes the weather alone. Nothing of the mechanism's randomness is drawn from it, and what
a fault hits depends on the machine's timing: equal seeds give equal schedules, not equal runs.
"""

import random
from dataclasses import dataclass
from typing import Literal

from credit_common.checked import require

Kind = Literal["kill-server", "kill-holder", "drop", "delay", "truncate"]
LONGEST_PAUSE = 1.0
"""Seconds from the end of a round to a fault that strikes in the next one."""
LONGEST_DELAY = 2.0
"""Seconds by which a slow line holds back each piece."""
MOST_BYTES = 20_000
"""After how many bytes from a holder its line breaks, at most: in the midst of some message."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: kill-server and kill-holder are SIGKILL; drop closes all connections of a holder;
            delay holds back what goes either way; truncate closes the holder's connections in the
            midst of what it sends.
        after: The round (0: the start) by whose end the fault is armed.
        pause: Seconds from then on.
        holder: Index of the holder that is hit; -1 for the coordinator.
        amount: Seconds of a delay, bytes until a truncation; 0 otherwise.
    """

    kind: Kind
    after: int
    pause: float
    holder: int = -1
    amount: float = 0.0


def schedule(seed: int, number: int, *, rounds: int, holders: int) -> tuple[Fault, ...]:
    """The faults of run `number`, in the order of rounds.

    Each run has one or two kills of the coordinator, two or three of holders, and two or three
    faults of lines of each kind; none is armed by the last round, after which nothing is asked.

    Raises:
        ContractError: If there are fewer than 2 rounds or no holder.
    """
    require(rounds >= 2, "rounds", rounds, "at least 2")
    require(holders >= 1, "holders", holders, "at least 1")
    draw = random.Random(f"{seed}-{number}")  # noqa: S311  # weather, no secret
    kinds: list[Kind] = ["kill-server"] * draw.randint(1, 2)
    kinds += ["kill-holder"] * draw.randint(2, 3)
    for kind in ("drop", "delay", "truncate"):
        kinds += [kind] * draw.randint(2, 3)
    faults = []
    for kind in kinds:
        amount = {
            "delay": draw.uniform(0.1, LONGEST_DELAY),
            "truncate": float(draw.randint(1, MOST_BYTES)),
        }.get(kind, 0.0)
        faults.append(
            Fault(
                kind=kind,
                after=draw.randint(0, rounds - 2),
                pause=draw.uniform(0.0, LONGEST_PAUSE),
                holder=-1 if kind == "kill-server" else draw.randrange(holders),
                amount=amount,
            )
        )
    return tuple(sorted(faults, key=lambda fault: (fault.after, fault.pause)))
