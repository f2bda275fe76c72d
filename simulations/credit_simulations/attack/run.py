"""The table of attacks: the same splits, with liars and without, under each aggregation."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from credit_client.training.examples import Examples
from credit_common.contract import Contract
from credit_common.device import device_of
from credit_common.errors import CreditError
from credit_common.model import CreditModel
from credit_common.sections import Aggregation
from credit_simulations.attack.liars import ATTACKS, Liars
from credit_simulations.attack.stock import stock_app
from credit_simulations.federation import (
    Outcome,
    Party,
    Progress,
    holdout_scores,
    simulate,
    under_edges,
)
from credit_simulations.sweep.budget import at_epsilon
from credit_simulations.sweep.plan import Entry, Trial
from credit_simulations.sweep.trials import judged
from credit_simulations.sweep.users import Draw, Users, draw, parties, read_users

STOCK = "stock"
"""Flower's FedAvg as it comes."""
_ROBUST: dict[str, Aggregation] = {name: name for name in ("trimmed_mean", "median", "multi_krum")}
AGGREGATORS = ("mean", *_ROBUST, STOCK)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is run.

    Attributes:
        data: A packaged data set of a binary task.
        holders: Sizes of federations: the data set's biggest natural holders.
        attackers: How many lie in each of them; empty for one in ten, rounded up.
        epsilon: None for no DP.
        seeds: Splits 0, 1, ..., each with liars of its own.
        text: Whether LoRA and head are trained beside the wide part.

    Raises:
        CreditError: Naming the option, if a name is unknown or a number out of its range.
    """

    data: str = "pakdd2009"
    holders: tuple[int, ...] = (3, 10, 27)
    attackers: tuple[int, ...] = ()
    attacks: tuple[str, ...] = ATTACKS
    aggregators: tuple[str, ...] = AGGREGATORS
    epsilon: float | None = 8.0
    seeds: int = 1
    text: bool = False

    def __post_init__(self) -> None:
        for what, own, known in (
            ("--attacks", self.attacks, ATTACKS),
            ("--aggregators", self.aggregators, AGGREGATORS),
        ):
            odd = [name for name in own if name not in known]
            if odd:
                raise CreditError(f"{what} {odd[0]}: must be one of {', '.join(known)}")
        if self.attackers and len(self.attackers) != len(self.holders):
            raise CreditError("--attackers: one number for each of --holders")
        for holders, liars in self.federations():
            if not (holders >= 3 and 1 <= liars <= (holders - 1) // 2):
                raise CreditError(
                    f"--holders {holders} with --attackers {liars}: there must be at least 3 "
                    "holders, of whom one lies at least and most do not"
                )
        if self.seeds < 1:
            raise CreditError(f"--seeds {self.seeds}: must be at least 1")
        if self.epsilon is not None and not 0 < self.epsilon <= 50:
            raise CreditError(f"--epsilon {self.epsilon:g}: must be inside (0, 50], or none")

    def federations(self) -> list[tuple[int, int]]:
        """Holders and liars of each."""
        liars = self.attackers or tuple(-(-holders // 10) for holders in self.holders)
        return list(zip(self.holders, liars, strict=True))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run with liars.

    Attributes:
        epsilon: Of the contract; None without DP.
        auc: Of the released model over all hold-out users; None if it has no numbers, or the run
            ended before its last round.
        auc_clean: The same without liars.
        set_aside: Of the liars' answers, by reason.
        honest_set_aside: Of the others'.
    """

    attack: str
    aggregator: str
    holders: int
    attackers: int
    seed: int
    epsilon: float | None
    auc: float | None
    auc_clean: float | None
    set_aside: dict[str, int]
    honest_set_aside: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Federation:
    """The holders of one split."""

    setting: Setting
    users: Users
    examples: Examples
    model: CreditModel
    drawn: Draw
    liars: frozenset[str]
    seed: int

    def row(self, aggregator: str, attack: str | None, auc_clean: float | None) -> Row:
        """One run; without an attack, a clean one."""
        start = time.perf_counter()
        contract = self._contract(aggregator)
        holders = parties(contract, self.drawn, self.examples)
        liars = Liars(attack, self.liars) if attack else None
        counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        auc = None

        def told(line: Progress) -> None:
            for name, why in line.set_aside.items():
                counts[name in self.liars].update(why)

        with tempfile.TemporaryDirectory(prefix="credit-sim-") as folder:
            try:
                outcome = simulate(
                    contract,
                    holders,
                    self.model,
                    ledgers=Path(folder),
                    allow_no_privacy=self.setting.epsilon is None,
                    seed=self.seed,
                    on_round=told,
                    wrap=liars.wrap if liars else None,
                    serve=stock_app if aggregator == STOCK else None,
                )
                auc = self._auc(contract, holders, outcome)
            except CreditError:  # the round has too few answers that count
                pass
        return Row(
            attack=attack or "none",
            aggregator=aggregator,
            holders=len(self.drawn.train),
            attackers=len(self.liars) if attack else 0,
            seed=self.seed,
            epsilon=self.setting.epsilon,
            auc=auc,
            auc_clean=auc_clean,
            set_aside=dict(counts[True]),
            honest_set_aside=counts[False].total(),
            seconds=round(time.perf_counter() - start, 2),
        )

    def bears(self, aggregator: str) -> bool:
        """Whether an aggregation can be had at all with so many holders and liars."""
        return aggregator != "multi_krum" or len(self.drawn.train) >= 2 * len(self.liars) + 3

    def _contract(self, aggregator: str) -> Contract:
        """The contract under an aggregation, which is told how many may lie."""
        contract, liars = self.users.contract, len(self.liars)
        if not self.setting.text:
            contract = contract.training_only("wide")
        training = contract.training
        if aggregator == STOCK:  # which averages nothing but adapters
            training = replace(training, upload="float32")
        elif aggregator in _ROBUST:
            training = replace(training, aggregation=_ROBUST[aggregator], byzantine=liars)
        least = max(training.least_answers, 2)
        contract = replace(
            contract,
            training=training,
            federation=replace(contract.federation, min_holders=least),
        )
        return at_epsilon(contract, self.setting.epsilon)

    def _auc(self, contract: Contract, holders: list[Party], outcome: Outcome) -> float | None:
        if not all(np.isfinite(array).all() for array in outcome.adapter.values()):
            return None
        self.model.contract = contract
        scores = holdout_scores(
            self.model, under_edges(contract, holders, outcome.edges), outcome.adapter
        )
        odds = {name: own[:, 0].astype(np.float64) for name, own in scores.items()}
        auc: float | None = judged(self.users, self.drawn, odds)["auc"]
        return auc


def run_attacks(setting: Setting, on_row: Callable[[Row], None] = lambda row: None) -> list[Row]:
    """Run every attack of a setting under every aggregation.

    Args:
        setting: What to run.
        on_row: Told of each run as it ends; clean ones have the attack "none".

    Returns:
        The rows with liars; none of multi_krum where there are not 2 f + 3 holders for f liars.

    Raises:
        CreditError: Whatever data, contract or ledger refuse.
    """
    whole = read_users(Entry(name=setting.data))
    examples = whole.examples if setting.text else whole.wide
    contract = whole.contract if setting.text else whole.contract.training_only("wide")
    model = whole.model if setting.text else CreditModel(contract, None, device_of("cpu"))
    rows = []
    for holders, liars in setting.federations():
        entry = Entry(name=setting.data, holders=holders, min_rows=1)
        for seed in range(setting.seeds):
            users = replace(whole, entry=entry)
            drawn = draw(users, Trial(entry=entry, arm="federated", epsilon=None, seed=seed))
            names = sorted(drawn.train)
            if len(names) != holders:
                raise CreditError(f"--holders {holders}: {len(names)} of them have both outcomes")
            lie = np.random.default_rng(seed).choice(names, liars, replace=False)
            federation = _Federation(
                setting=setting,
                users=users,
                examples=examples,
                model=model,
                drawn=drawn,
                liars=frozenset(map(str, lie)),
                seed=seed,
            )
            for aggregator in setting.aggregators:
                if not federation.bears(aggregator):
                    continue
                clean = federation.row(aggregator, None, None)
                on_row(clean)
                for attack in setting.attacks:
                    rows.append(federation.row(aggregator, attack, clean.auc))
                    on_row(rows[-1])
    return rows
