"""`credit-sim chaos`: a calm run, and then one run after another under faults."""

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from credit_common.errors import CreditError
from credit_simulations.chaos.after import Judge, examine, releases_differ
from credit_simulations.chaos.checks import Findings
from credit_simulations.chaos.ground import Ground, Terms, lay_ground
from credit_simulations.chaos.run import Liar, Run, Trace, Weather
from credit_simulations.chaos.schedule import schedule

HOLDERS, ROWS = 6, 1500
LIES = (
    "refusal", "nothing", "garbage", "other-kind", "other-shape", "not-finite", "beyond", "echo",
    "foreign", "twice", "stale", "forged-head",
)  # fmt: skip
"""What the liar tells unless it is told otherwise: all but a change that drowns the others', which
a mean takes for what it is."""
AUC_BOUND = 0.01
LIMIT_SECONDS = 600.0
"""Wall time after which a run counts as hanging."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run under faults.

    Attributes:
        number: From 1.
        private: Whether it had a budget; odd numbers have.
        auc: On the honest holders' hold-out users; nan where the run is private or did not end.
        auc_difference: From the calm run; nan likewise.
        releases_differing: Holders whose release is another than the coordinator's.
        reason: Why it did not end, or what could not be read afterwards.
    """

    number: int
    private: bool
    ended: bool
    found: Findings
    auc: float = math.nan
    auc_difference: float = math.nan
    releases_differing: int = 0
    trace: Trace
    reason: str = ""

    @property
    def failures(self) -> list[str]:
        """What is wrong with it, in words."""
        wrong = [f"{n} = {v}" for n, v in vars(self.found).items() if v]
        if not self.ended or self.reason:
            wrong.append(self.reason or "did not end")
        if self.releases_differing:
            wrong.append(f"releases_differing = {self.releases_differing}")
        if self.auc_difference > AUC_BOUND:
            wrong.append(f"auc_difference = {self.auc_difference:.4f}, at most {AUC_BOUND:g}")
        return wrong


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """How runs under faults are made.

    Attributes:
        runs: How many.
        seed: Of the schedules of faults and of the liar's choice of lies.
        rounds, steps, reads_text, min_holders, grace_seconds: Of the contract (see `Terms`). Odd
            runs are private, even ones open.
        holders: The last one lies.
        rows: Most rows of a shop.
        lies: Kinds (see `liar`).
        keep: Folder that the runs' folders stay in; None removes those of runs without a failure.
    """

    runs: int = 10
    seed: int = 0
    rounds: int = 10
    steps: int = 3
    reads_text: bool = True
    min_holders: int = 3
    grace_seconds: float = 30.0
    holders: int = HOLDERS
    rows: int = ROWS
    lies: Sequence[str] = LIES
    keep: Path | None = None


def run_chaos(
    plan: Campaign,
    *,
    stage: Callable[[str], None] = lambda words: None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """A calm run without privacy where any is compared with it, and all runs under faults.

    Ledgers and ε are looked at in private runs. AUC is compared at ε = ∞, where no noise is between
    the two: so every second run is open. Both kinds are checked for rounds.

    Raises:
        CreditError: If the calm run does not end well: nothing could be compared with it.
    """
    home = plan.keep or Path(tempfile.mkdtemp(prefix="credit-chaos-"))
    judge, calm_auc = None, math.nan
    if plan.runs > 1:
        stage("a calm run to compare with")
        ground = _ground(plan, home / "calm", private=False)
        calm = Run(ground, seed=plan.seed).go(LIMIT_SECONDS)
        if calm.release is None or not calm.ended:
            raise CreditError(f"the calm run did not end: {calm.reason}; its folder: {ground.home}")
        judge = Judge(ground, list(ground.shards)[:-1])
        calm_auc = judge.auc(calm.release)
        stage(f"calm: AUC {calm_auc:.4f}, {calm.wall:.0f} s, of CPU {calm.cpu:.0f} s")
    rows = []
    for number in range(1, plan.runs + 1):
        row = _one(plan, number, home / f"run-{number}", judge, calm_auc)
        rows.append(row)
        on_row(row)
        if plan.keep is None and not row.failures:
            shutil.rmtree(home / f"run-{number}")
    if any(row.failures for row in rows):
        stage(f"what failed is kept in {home}")
    elif plan.keep is None:
        shutil.rmtree(home)
    return rows


def _one(plan: Campaign, number: int, home: Path, judge: Judge | None, calm_auc: float) -> Row:
    private = number % 2 == 1
    ground = _ground(plan, home, private=private)
    names = list(ground.shards)
    liar = Liar(name=names[-1], lies=plan.lies, seed=1000 * plan.seed + number)
    faults = schedule(plan.seed, number, rounds=plan.rounds, holders=len(names))
    trace = Run(ground, liar=liar, seed=plan.seed).go(LIMIT_SECONDS, [Weather(faults)])
    found, differing, auc, reason = Findings(), 0, math.nan, trace.reason
    try:
        found = examine(ground, trace, liar.name) if trace.ended else found
        differing = releases_differ(ground, trace, liar.name)
        if not private and judge is not None and trace.release is not None:
            auc = judge.auc(trace.release)
    except CreditError as error:  # a ledger that is not whole, a message without its charge
        reason = str(error)
    return Row(
        number=number,
        private=private,
        ended=trace.ended,
        found=found,
        auc=auc,
        auc_difference=abs(auc - calm_auc),
        releases_differing=differing,
        trace=trace,
        reason=reason,
    )


def _ground(plan: Campaign, home: Path, *, private: bool) -> Ground:
    terms = Terms(
        rounds=plan.rounds,
        steps=plan.steps,
        private=private,
        reads_text=plan.reads_text,
        min_holders=plan.min_holders,
        grace_seconds=plan.grace_seconds,
    )
    return lay_ground(home, terms, plan.holders, plan.rows)
