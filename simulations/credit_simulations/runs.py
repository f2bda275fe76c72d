"""A whole run: one federation, and beside it the arms that say what it gains and what ε costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from credit_client.mapping import ShardMapping
from credit_common.contract import Contract
from credit_common.errors import PrivacyError
from credit_common.model import Arrays
from credit_common.privacy import NO_PRIVACY, check_plan, mechanism_plan
from credit_common.statistics import Edges
from credit_simulations.arms import ARMS, Bench, check_arms
from credit_simulations.federation import Progress
from credit_simulations.packaged import packaged_contract, packaged_shards


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """What is told about a run as it goes on.

    Attributes:
        stage: Called with a few words when a new part begins.
        note: Called with a line that should stay: what was read of each shard.
        round: Called after each round with the arm, the noise draw (from 1) and the round's line.
    """

    stage: Callable[[str], None] = lambda words: None
    note: Callable[[str], None] = lambda line: None
    round: Callable[[str, int, Progress], None] = lambda arm, draw, progress: None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """All arms, and the adapter of the federation's first draw.

    Attributes:
        table: One row for each arm and noise draw: arm, epsilon (None without DP), draw, the exact
            figures over all hold-out users (auc and ks, accuracy, or mae), the first of them as
            the mean over holders (_in_holder) and as released (_released, with its interval,
            _released_low and _released_high), bytes_up of one holder in one round, seconds.
        users: Training and hold-out users by holder.
        seconds: Wall time by part.
        edges: Of the fields whose edges are federated, which the adapter goes with.
    """

    contract: Contract
    table: pd.DataFrame
    adapter: Arrays
    users: Mapping[str, tuple[int, int]]
    seconds: Mapping[str, float]
    edges: Edges = field(default_factory=dict)

    def means(self) -> pd.DataFrame:
        """One row an arm, averaged over its noise draws, in the order of the arms."""
        grouped = self.table.drop(columns="draw").groupby("arm", sort=False)
        table = grouped.mean(numeric_only=True)
        table.insert(0, "draws", grouped.size())
        return table.reset_index()


def run(
    contract: Contract | str | Path, shards: Mapping[str, Path] | None = None, **options: Any
) -> pd.DataFrame:
    """The table of `run_arms`, for notebooks; it takes the same options."""
    return run_arms(contract, shards, **options).table


def run_arms(
    contract: Contract | str | Path,
    shards: Mapping[str, Path] | None = None,
    *,
    arms: Sequence[str] = ARMS,
    holders: int = 5,
    draws: int = 1,
    seed: int = 0,
    device: str = "auto",
    allow_no_privacy: bool = False,
    state: Path | None = None,
    mapping: ShardMapping | None = None,
    watcher: Watcher | None = None,
) -> RunResult:
    """Simulate a federation and its baselines.

    Args:
        contract: A contract, the path of one, or the name of a packaged one.
        shards: File of each holder by name; None takes the data set that is packaged under the
            contract's name, its biggest `holders` holders.
        arms: Which of `ARMS` to run; the federation itself always runs.
        draws: Independent noise draws of each private arm.
        seed: Of sampling where epsilon is infinite; private arms cannot be seeded.
        allow_no_privacy: Whether the contract itself may be without a budget.
        state: Folder for the holders' own files, kept: NAME.ledger of the federation's first draw
            and NAME.rejects.csv where rows were rejected. Further draws and baselines have ledgers
            of their own, which go with the run, as all do where this is None.
        mapping: Columns and codes of the shards in the contract's terms.

    Raises:
        CreditError: Whatever a contract, a shard, the backbone or a ledger refuses.
    """
    watcher = watcher or Watcher()
    check_arms(arms)
    contract = packaged_contract(contract)
    if not contract.privacy.private and not allow_no_privacy:
        raise PrivacyError(NO_PRIVACY)
    # A schedule past its budget is refused by every holder; better before anything is computed.
    check_plan(mechanism_plan(contract, contract.privacy.size_classes[0][0]))
    if shards is None:
        watcher.stage(f"fetching {contract.federation.name}")
        shards = packaged_shards(contract.federation.name, holders)
    bench = Bench(
        contract,
        device=device,
        seed=seed,
        state=state,
        allow_no_privacy=allow_no_privacy,
        stage=watcher.stage,
        note=watcher.note,
        on_round=watcher.round,
    )
    with bench:
        bench.read(shards, mapping)
        first = bench.federated(draws)
        for arm in ARMS[1:]:
            if arm in arms:
                bench.arm(arm, draws)
    return RunResult(
        contract=contract,
        table=pd.DataFrame(bench.rows),
        adapter=first.adapter,
        users={p.name: (len(p.train), len(p.holdout)) for p in bench.parties},
        seconds=bench.seconds,
        edges=first.edges,
    )
