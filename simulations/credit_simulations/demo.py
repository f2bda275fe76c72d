"""The demo: five shops as processes of their own, and what their model is worth.

They are the commands of the README's two machines, `flower-server` and `credit-client`. What they
release is held against the arms of `credit-sim run`, on the same users and split, and against what
shops that took no part could do alone.
"""

import csv
import importlib.util
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from credit_client.scoring.batch import score_file
from credit_common.errors import CreditError
from credit_common.extras import install
from credit_simulations.arms import ARMS, Bench, check_arms
from credit_simulations.data import contract_path
from credit_simulations.federation import read_shards
from credit_simulations.live import Live, federate, found
from credit_simulations.newcomers import MIN_ROWS, Newcomers
from credit_simulations.packaged import newcomer_shards, packaged_contract, packaged_shards
from credit_simulations.runs import RunResult, Watcher

DATA_SET = "pakdd2009"
HOME = Path("credit-demo")
SCORED = 5
"""Records that are scored with the release, to show how that looks."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Everything that the demo found.

    Attributes:
        home: The folder that it made.
        run: All arms; the federated one is what the processes released.
        shard: The file whose first records were scored.
        scored: Columns of each of them.
        seconds: Wall time of the whole.
    """

    home: Path
    run: RunResult
    live: Live
    newcomers: Newcomers
    shard: Path
    scored: Sequence[Mapping[str, str]]
    seconds: float


def run_demo(
    home: Path | None = None,
    *,
    holders: int = 5,
    arms: Sequence[str] = ARMS,
    data_set: str = DATA_SET,
    newcomer_rows: int = MIN_ROWS,
    watcher: Watcher | None = None,
) -> DemoResult:
    """Run a federation as processes on this machine, and compare what it releases.

    Args:
        home: Folder for everything, not there yet or empty; None takes the first of credit-demo,
            credit-demo-2, ... that is not there.
        holders: The biggest shops take part.
        arms: Which of `ARMS` to run.
        data_set: A packaged one with a binary task.
        newcomer_rows: Fewest rows of a shop that took no part.

    Raises:
        CreditError: If the folder is in use, scikit-learn is missing, or a process does not end
            well. However this ends, no process is left.
    """
    start = time.perf_counter()
    watcher = watcher or Watcher()
    check_arms(arms)
    if importlib.util.find_spec("sklearn") is None:
        raise CreditError(f"the demo needs scikit-learn: {install('bench')}")
    contract = packaged_contract(data_set)
    minimum = contract.federation.min_holders
    if holders < minimum:  # the coordinator would wait for more for ever
        raise CreditError(f"--holders {holders}: the contract needs at least {minimum}")
    watcher.stage(f"fetching {data_set}")
    files = packaged_shards(data_set, holders)
    newcomers = newcomer_shards(data_set, holders, newcomer_rows)
    home = new_home(home)
    watcher.note(f"everything is kept in {home}")
    shards = found(home, contract_path(data_set), files)
    preparing = time.perf_counter() - start
    live = federate(home, shards, watcher)
    bench = Bench(
        contract,
        device="cpu",
        seed=0,
        state=None,
        allow_no_privacy=False,
        stage=watcher.stage,
        note=watcher.note,
        on_round=watcher.round,
    )
    with bench:
        bench.read(shards, None)
        bench.given(live.outcome)
        for arm in ARMS[1:]:
            if arm in arms:
                bench.arm(arm, 1)
        gains = bench.newcomers(read_shards(contract, newcomers), live.outcome.adapter)
    shard = shards[next(iter(files))]
    score_file(live.release, shard, home / "scores.csv", limit=SCORED)
    with (home / "scores.csv").open(encoding="utf-8", newline="") as file:
        scored = tuple(csv.DictReader(file))
    run = RunResult(
        contract=contract,
        table=pd.DataFrame(bench.rows),
        adapter=live.outcome.adapter,
        users={p.name: (len(p.train), len(p.holdout)) for p in bench.parties},
        seconds={"preparing": preparing, **live.seconds, **bench.seconds},
        edges=live.outcome.edges,
    )
    return DemoResult(
        home=home,
        run=run,
        live=live,
        newcomers=gains,
        shard=shard,
        scored=scored,
        seconds=time.perf_counter() - start,
    )


def new_home(home: Path | None) -> Path:
    """Make the demo's folder; nothing that is there is written over.

    Raises:
        CreditError: If a folder that was asked for has something in it, or cannot be made.
    """
    try:
        if home is not None:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(home.iterdir()):
                raise CreditError(f"--home {home}: there is something in it; take another folder")
            return home.absolute()
        for number in itertools.count(1):
            folder = HOME if number == 1 else HOME.with_name(f"{HOME.name}-{number}")
            if not folder.exists():
                folder.mkdir(mode=0o700)
                return folder.absolute()
    except OSError as error:
        raise CreditError(
            f"cannot make the demo's folder {home or HOME}: {error.strerror}"
        ) from None
    raise AssertionError  # counting does not end
