"""A sweep file (TOML) -> trials, each known by the digest of all that its result depends on."""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from credit_common.checked import build, require
from credit_common.contract import Contract
from credit_common.errors import ContractError
from credit_common.sections import NAME, NAME_BOUND, LearningRates

REVISION = 2
"""One more whenever the code changes what a trial's result is; finished trials run again then."""
REVISIONS = {"local_only": 3}
"""The same where it changed for an arm alone."""
DRAWN_REVISION = 3
"""And where holders are drawn, or people have rows at several."""
SEVERAL_ROWS = ("simulated-shops",)
"""Data sets of which a person has several rows."""

Partition = Literal["natural", "iid", "dirichlet", "quantity"]

PRIVATE_ARMS = ("federated", "newcomers", "wide_only", "text_only", "frozen_bert")
"""Arms that train at each ε of the sweep, without DP where it is infinite."""
OPEN_ARMS = ("local_only", "central", "logistic", "gbm", "untuned", "tfidf")
"""Arms without DP."""
ARMS = (*PRIVATE_ARMS, "central_dp", *OPEN_ARMS)
"""All arms; `central_dp` trains at each finite ε. `sweep.arms` says what each is."""
BASELINES = ("local_only", "logistic", "gbm", "untuned", "tfidf")
"""Arms that are scikit-learn's."""
WITHOUT_TEXT = ("wide_only", "local_only", "logistic", "gbm", "tfidf")
"""Arms that no text goes through BERT for."""


@dataclass(frozen=True, kw_only=True)
class At:
    """What an entry changes in the contract at some ε, for the arms that train its model.

    A contract is written for one ε; at another, other steps and rates are right. What is left out
    stays the contract's; of learning rates, all groups are told at once.

    Attributes:
        epsilons: Where it holds; `without_dp`: whether it holds without DP.
        rounds, steps, sampling_rate, average, server_momentum, learning_rate: Of [training].
    """

    epsilons: tuple[float, ...] = ()
    without_dp: bool = False
    rounds: int | None = None
    steps: int | None = None
    sampling_rate: float | None = None
    average: float | None = None
    server_momentum: float | None = None
    learning_rate: LearningRates | None = None

    def holds(self, epsilon: float | None) -> bool:
        """Whether it holds at an ε; None is without DP."""
        return self.without_dp if epsilon is None else epsilon in self.epsilons

    def changed(self, contract: Contract) -> Contract:
        """The contract with what is changed; ContractError where a value is out of its range."""
        own = {name: getattr(self, name) for name in _TRAINING}
        told = {name: value for name, value in own.items() if value is not None}
        return replace(contract, training=replace(contract.training, **told))


_TRAINING = (
    "rounds",
    "steps",
    "sampling_rate",
    "average",
    "server_momentum",
    "learning_rate",
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One data set and how it is spread over holders.

    Attributes:
        name: A data set of `credit-sim data`.
        partition: The natural holders, or drawn ones (see `credit_simulations.partition`).
        holders: How many: of the natural ones the biggest, 0 for all.
        min_rows: Fewest rows of a holder.
        alpha: Of Dirichlet draws; dirichlet and quantity alone.
        rows: A sample of so many rows, the same for all seeds; 0 for all rows.
        held_out: "users" by their hash, as the contract splits them, or the "later" ones by the
            contract's time.
        contract: A federation file instead of the packaged one, beside the sweep file.
        arms: Only these of the sweep's; empty for all.
        at: What is changed in it at some ε; the last one that holds counts.
    """

    name: str
    partition: Partition = "natural"
    holders: int = 0
    min_rows: int = 300
    alpha: float = 0.5
    rows: int = 0
    held_out: Literal["users", "later"] = "users"
    contract: str = ""
    arms: tuple[str, ...] = ()
    at: tuple[At, ...] = ()

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(NAME, self.name)), "data.name", self.name, NAME_BOUND)
        least = 0 if self.partition == "natural" else 2
        require(self.holders >= least, "data.holders", self.holders, f"at least {least}")
        require(self.min_rows >= 1, "data.min_rows", self.min_rows, "at least 1")
        require(self.rows >= 0, "data.rows", self.rows, "at least 0")
        ok = 1e-3 <= self.alpha <= 1e6
        require(ok, "data.alpha", self.alpha, "between 0.001 and 1000000")

    def contract_at(self, contract: Contract, epsilon: float | None) -> Contract:
        """The contract as it is at an ε, before its noise is set."""
        found = [own for own in self.at if own.holds(epsilon)]
        return found[-1].changed(contract) if found else contract

    @property
    def spread(self) -> str:
        """The partition with its alpha, and who is held out where it is not users by hash."""
        drawn = self.partition in ("dirichlet", "quantity")
        name = f"{self.partition}-{self.alpha:g}" if drawn else self.partition
        return f"{name}-later" if self.held_out == "later" else name


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep runs.

    Attributes:
        name: Of the sweep, and of its folder.
        epsilons: Budgets of the arms with DP.
        without_dp: Whether the arms that train at each ε train without DP too.
        seeds: Splits and drawn partitions 0, 1, ...: so many repetitions. With `folds` it
            is ignored: each fold is a repetition.
        data: The data sets.
        arms: Which of `ARMS`.
        epsilons_of: Arm -> the ε at which it alone runs.
        folds: k of a k-fold cross-validation instead of seeds; 0 for none.
        leave_one_out: Whether newcomers are each holder in turn, instead of a fifth of the holders.
        perturbed: Hold-out users whose records are spoilt and scored again (see `perturbed`).
    """

    name: str
    epsilons: tuple[float, ...] = (1.0, 3.0, 8.0)
    without_dp: bool = True
    seeds: int = 5
    data: tuple[Entry, ...]
    arms: tuple[str, ...] = ARMS
    epsilons_of: tuple[tuple[str, tuple[float, ...]], ...] = ()
    folds: int = 0
    leave_one_out: bool = False
    perturbed: int = 0

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(NAME, self.name)), "name", self.name, NAME_BOUND)
        require(self.seeds >= 1, "seeds", self.seeds, "at least 1")
        require(self.folds != 1 and self.folds >= 0, "folds", self.folds, "0, or at least 2")
        require(self.perturbed >= 0, "perturbed", self.perturbed, "at least 0")
        later = [e.name for e in self.data if e.held_out == "later"]
        require(not (self.folds and later), "folds", self.folds, "0 where the later are held out")
        require(bool(self.data), "data", self.data, "at least one [[data]]")
        told = [(e.name, e.spread, e.holders) for e in self.data]
        twice = [" ".join(map(str, own)) for own in told if told.count(own) > 1]
        require(not twice, "data", twice, "told apart by name, partition, alpha or holders")
        of_data = [arm for entry in self.data for arm in entry.arms]
        for arm in (*self.arms, *of_data, *dict(self.epsilons_of)):
            require(arm in ARMS, "arms", arm, "one of " + ", ".join(ARMS))
        for where, epsilons in (("epsilons", self.epsilons), *self.epsilons_of):
            require(all(0 < e <= 50 for e in epsilons), where, epsilons, "inside (0, 50]")
            require(len(set(epsilons)) == len(epsilons), where, epsilons, "each once")

    def trials(self) -> list["Trial"]:
        """Every trial, data set by data set and seed by seed."""
        repetitions = self.folds or self.seeds
        made = []
        for entry in self.data:
            for seed in range(repetitions):
                for arm in self.arms:
                    if entry.arms and arm not in entry.arms:
                        continue
                    for epsilon in self._epsilons(arm):
                        made.append(
                            Trial(
                                entry=entry,
                                arm=arm,
                                epsilon=epsilon,
                                seed=seed,
                                folds=self.folds,
                                leave_one_out=self.leave_one_out and arm == "newcomers",
                                perturbed=self.perturbed,
                            )
                        )
        return made

    def _epsilons(self, arm: str) -> tuple[float | None, ...]:
        if arm in OPEN_ARMS:
            return (None,)
        private = dict(self.epsilons_of).get(arm, self.epsilons)
        return (*private, None) if self.without_dp and arm in PRIVATE_ARMS else private


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training and what it is judged by.

    Attributes:
        epsilon: None without DP.
        seed: Of split, partition and, without DP, of sampling; with folds the fold, from 0.
        folds, leave_one_out, perturbed: Of the sweep.
    """

    entry: Entry
    arm: str
    epsilon: float | None
    seed: int
    folds: int = 0
    leave_one_out: bool = False
    perturbed: int = 0

    def digest(self, contract: Contract, data_sha256: str) -> str:
        """SHA-256 of all that the result depends on, in hex.

        Args:
            contract: Of the entry.
            data_sha256: Of the prepared data file.
        """
        if self.arm not in BASELINES:
            contract = self.entry.contract_at(contract, self.epsilon)
        told = {
            "revision": self._revision,
            "trial": asdict(replace(self, entry=replace(self.entry, contract="", arms=(), at=()))),
            "contract": contract.untold().digest,
            "data": data_sha256,
        }
        text = json.dumps(told, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def _revision(self) -> int:
        drawn = self.entry.partition != "natural" or self.entry.name in SEVERAL_ROWS
        return max(DRAWN_REVISION if drawn else REVISION, REVISIONS.get(self.arm, REVISION))


def load_sweep(path: Path) -> Sweep:
    """Read and check a sweep file; contracts are looked for beside it.

    Raises:
        ContractError: Naming file, key, value and bound.
    """
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ContractError(f"cannot read the sweep {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ContractError(f"{path}: not valid TOML: {error}") from None
    try:
        return _sweep(tables, path.parent)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from None


def _sweep(tables: dict[str, Any], folder: Path) -> Sweep:
    listed = tables.get("data")
    if not isinstance(listed, list) or not listed:
        raise ContractError("[[data]] is missing: name at least one data set")
    entries = [build(Entry, table, "data") for table in listed]
    tables["data"] = tuple(
        replace(e, contract=str(folder / e.contract)) if e.contract else e for e in entries
    )
    own = tables.get("epsilons_of", {})
    require(isinstance(own, Mapping), "epsilons_of", own, "a table of lists")
    tables["epsilons_of"] = tuple((arm, tuple(map(float, e))) for arm, e in own.items())
    return build(Sweep, tables, "sweep")
