"""`credit-sim chaos --kills`: a coordinator and a holder end themselves at random calls.

A point is a call of one of the project's own functions, so that short steps, such as those between
two writes, are hit as often as long ones: by the clock nearly all kills would fall into training
and waiting. Half of the next lives get a point of their own from the start, for the steps of coming
back. One long private run of three shops on the wide features takes all points.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from credit_common.errors import CreditError
from credit_simulations.chaos.after import examine
from credit_simulations.chaos.checks import Findings
from credit_simulations.chaos.door import Calls
from credit_simulations.chaos.ground import Terms, lay_ground
from credit_simulations.chaos.run import SERVER, Run, Trace
from credit_simulations.processes import Event

HOLDERS, ROWS = 3, 500
SECONDS_A_POINT = 60.0
MARKS = {True: ("round", "resumed"), False: ("answered",)}
"""What a coordinator, or else a holder, says once a round."""


@dataclass(frozen=True, kw_only=True)
class Killed:
    """What came of it.

    Attributes:
        points: Name -> kill points that were reached.
        found: What must not have happened; `trace` has the rest.
        reason: Why the run did not end, or what could not be read afterwards.
    """

    points: dict[str, int]
    found: Findings
    trace: Trace
    reason: str = ""

    @property
    def failures(self) -> list[str]:
        """What is wrong, in words."""
        wrong = [f"{n} = {v}" for n, v in vars(self.found).items() if v]
        if not self.trace.ended or self.reason:
            wrong.append(self.reason or "did not end")
        wrong += [
            f"no kill point of {name} was reached" for name, n in self.points.items() if not n
        ]
        return wrong


class KillPoints:
    """Sets the points of one process; a watcher of `Run.go`.

    Args:
        name: Its name in the run.
        points: How many.
        draw: Where they come from.
    """

    def __init__(self, name: str, points: int, draw: random.Random) -> None:
        self._name, self._left, self._draw = name, points, draw
        self._mark: int | None = None
        self._armed = self._again = False  # in this life, and in the next from its start
        self.reached = 0

    def __call__(self, run: Run, event: Event) -> None:
        """Count a death; after a round, choose a call of the next one."""
        if event.who != self._name:
            return
        if event.what == "killed":
            self.reached += 1
            self._armed, self._again, self._mark = self._again, False, None
        elif event.what in MARKS[self._name == SERVER]:
            calls = run.calls[self._name].count
            if self._mark is not None and self._left and not self._armed:
                self._arm(run, calls, calls - self._mark)
            self._mark = calls

    def _arm(self, run: Run, now: int, a_round: int) -> None:
        self._armed, self._left = True, self._left - 1
        run.calls[self._name].end_at(now + self._draw.randint(1, max(a_round, 1)))
        self._again = bool(self._left) and self._draw.random() < 0.5
        if self._again:
            self._left -= 1
            run.ends[self._name] = self._draw.randint(1, max(a_round, 1))


def run_kills(
    home: Path,
    points: int,
    *,
    seed: int = 0,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Killed:
    """Run with `points` kill points of the coordinator and as many of one holder.

    Args:
        home: Not there yet; it stays.
        points: At least 1.
        seed: Of the points.
    """
    draw = random.Random(f"kills-{seed}")  # noqa: S311  # points of a test, no secret
    terms = Terms(
        rounds=3 * points + 6,
        steps=1,
        private=True,
        noise_multiplier=4.0,
        reads_text=False,
        min_holders=HOLDERS - 1,
    )
    ground = lay_ground(home, terms, HOLDERS, ROWS)
    victims = [KillPoints(name, points, draw) for name in (SERVER, next(iter(ground.shards)))]
    names = [SERVER, next(iter(ground.shards))]
    run = Run(ground, calls={name: Calls(home / f"{name}.calls") for name in names})
    trace = run.go(
        SECONDS_A_POINT * (2 * points + 2), [*victims, lambda run, event: on_event(event)]
    )
    found, reason = Findings(), trace.reason
    try:
        found = examine(ground, trace, None) if trace.ended else found
    except CreditError as error:
        reason = str(error)
    reached = {name: victim.reached for name, victim in zip(names, victims, strict=True)}
    return Killed(points=reached, found=found, trace=trace, reason=reason)
