"""Finished trials, read from the file to which a sweep appends them, one JSON object a line."""

import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from credit_common.errors import CreditError

HELD_OUT = 0.25
"""Share held out where a line does not say: that of the packaged contracts."""


@dataclass(frozen=True, kw_only=True, order=True)
class Setting:
    """Whose users: a data set and how it lies at its holders."""

    data: str
    partition: str
    holders: int


@dataclass(frozen=True, kw_only=True)
class Holder:
    """One holder's hold-out users; `auc` is None where they are of one class."""

    auc: float | None
    users: int


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Users of like predictions: mean prediction, share that defaulted, count."""

    predicted: float
    observed: float
    users: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One arm, trained once.

    Attributes:
        digest: Of the trial's configuration.
        epsilon: The budget; None without DP.
        seed: Of the split; with folds the fold.
        folds: k of a k-fold cross-validation; 0 where splits are drawn by seeds.
        leave_one_out: Whether newcomers were each holder in turn.
        held_out: Share of users that a split by seed holds out.
        left_out: Holders without a user to train on, or to judge by.
        auc, ks, brier: Over all hold-out users.
        in_holder_auc: Mean over holders of the AUC within each.
        in_holder: By holder.
        bytes_up: Of one holder in one round.
        rounds: (round, AUC), in order.
        best_auc: The best that simulated data allow; None where nobody knows.
        perturbed: AUC of some of the users as they are ("clean") and with their records spoilt, by
            the way in which; empty where nobody asked for it.
    """

    digest: str
    setting: Setting
    arm: str
    epsilon: float | None
    seed: int
    folds: int
    leave_one_out: bool
    held_out: float
    left_out: int
    delta: float | None
    epsilon_spent: float | None
    auc: float
    ks: float
    brier: float | None
    in_holder_auc: float | None
    in_holder: Mapping[str, Holder]
    bytes_up: float
    rounds: tuple[tuple[int, float], ...]
    calibration: tuple[Bin, ...]
    best_auc: float | None
    perturbed: Mapping[str, float | None]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What a file holds.

    Attributes:
        broken: Lines at the file's end that a crash left unfinished: 0 or 1.
        replaced: Trials of which a later line has the same configuration, which counts.
        superseded: Those of which a later line has the same arm, ε and seed, but another
            configuration, or the same arm and ε, but other repetitions (folds for seeds, each
            holder in turn for a fifth). The later one counts, since a mean over both would be of
            neither.
    """

    trials: tuple[Trial, ...]
    broken: int = 0
    replaced: int = 0
    superseded: int = 0


def read_trials(path: Path, only: Set[str] | None = None) -> Trials:
    """Read a results file.

    Args:
        path: Of the file.
        only: Digests of the trials that are asked for; None for all.

    Raises:
        CreditError: Naming file and line, if it is missing, holds no trial, or a line is wrong. A
            last line that is no JSON is what a crash leaves: it is skipped and counted.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CreditError(f"{path}: {error.strerror or 'cannot be read'}") from None
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    trials, broken = [], 0
    for number, line in filled:
        where = f"{path}, line {number}"
        try:
            plain = json.loads(line.decode("utf-8"), parse_constant=_no_number)
        except (ValueError, RecursionError):
            if number == filled[-1][0]:
                broken = 1
                break
            raise CreditError(f"{where}: is not one JSON object with finite numbers") from None
        if isinstance(plain, dict) and plain.get("unused") is True:
            continue  # the contract has no use for this arm
        trials.append(_trial(plain, where))
    trials = [trial for trial in trials if only is None or trial.digest in only]
    if not trials:
        raise CreditError(f"{path}: holds no finished trial")
    by_digest = {trial.digest: trial for trial in trials}
    kinds = {(t.setting, t.arm, t.epsilon): _repetition(t) for t in trials}  # the last line's
    latest = {
        (t.setting, t.arm, t.epsilon, t.seed): t
        for t in trials
        if by_digest[t.digest] is t and _repetition(t) == kinds[t.setting, t.arm, t.epsilon]
    }
    return Trials(
        trials=tuple(latest.values()),
        broken=broken,
        replaced=len(trials) - len(by_digest),
        superseded=len(by_digest) - len(latest),
    )


def _repetition(trial: Trial) -> tuple[int, bool]:
    return trial.folds, trial.leave_one_out


def _trial(plain: object, where: str) -> Trial:
    read = _Fields(plain, where)
    seconds = read.number("seconds", 0)
    return Trial(
        digest=read.text("digest"),
        setting=Setting(
            data=read.text("data"),
            partition=read.text("partition"),
            holders=read.whole("holders", 1),
        ),
        arm=read.text("arm"),
        epsilon=read.optional("epsilon", 1e-9),
        seed=read.whole("seed", 0),
        folds=read.whole("folds", 0, default=0),
        leave_one_out=read.truth("leave_one_out"),
        held_out=read.optional("held_out", 0, 0.99) or HELD_OUT,
        left_out=read.whole("left_out", 0, default=0),
        delta=read.optional("delta", 0, 1),
        epsilon_spent=read.optional("epsilon_spent", 0),
        auc=read.number("auc", 0, 1),
        ks=read.number("ks", 0, 1),
        brier=read.optional("brier", 0, 1),
        in_holder_auc=read.optional("in_holder_auc", 0, 1),
        in_holder={
            name: Holder(auc=each.optional("auc", 0, 1), users=each.whole("users", 0))
            for name, each in read.named("in_holder").items()
        },
        bytes_up=read.optional("bytes_up", 0) or 0.0,
        rounds=tuple(
            (each.whole("round", 0), each.number("auc", 0, 1)) for each in read.listed("rounds")
        ),
        calibration=tuple(
            Bin(
                predicted=each.number("predicted", 0, 1),
                observed=each.number("observed", 0, 1),
                users=each.whole("users", 0),
            )
            for each in read.listed("calibration")
        ),
        best_auc=read.optional("best_auc", 0, 1),
        perturbed=read.numbers("perturbed", 0, 1),
        seconds=seconds,
    )


class _Fields:
    """The fields of one JSON object; an error says where it stands. Others than asked are left."""

    def __init__(self, plain: object, where: str) -> None:
        if not isinstance(plain, dict):
            raise CreditError(f"{where}: must be a JSON object")
        self._plain: dict[str, Any] = plain
        self._where = where

    def text(self, key: str) -> str:
        value = self._plain.get(key)
        if not isinstance(value, str) or not value.strip():
            self._refuse(key, "must be a text that is not empty")
        return value

    def truth(self, key: str) -> bool:
        value = self._plain.get(key, False)
        if not isinstance(value, bool):
            self._refuse(key, "must be true or false")
        return value

    def whole(self, key: str, low: int, default: int | None = None) -> int:
        value = self._plain.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            self._refuse(key, f"must be a whole number of at least {low}")
        return value

    def number(self, key: str, low: float, high: float = math.inf) -> float:
        value = self._plain.get(key)
        # An integer beyond all floats passes `low`, and nothing could be computed with it.
        bound = min(high, 1e300)
        if not isinstance(value, int | float) or isinstance(value, bool):
            self._refuse(key, "must be a number")
        if not low <= value <= bound:
            within = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            self._refuse(key, f"must be {within}")
        return float(value)

    def optional(self, key: str, low: float, high: float = math.inf) -> float | None:
        return None if self._plain.get(key) is None else self.number(key, low, high)

    def numbers(self, key: str, low: float, high: float) -> dict[str, float | None]:
        plain = self._plain.get(key) or {}
        if not isinstance(plain, dict):
            self._refuse(key, "must be a JSON object")
        inner = _Fields(plain, f"{self._where}, {key}")
        return {name: inner.optional(name, low, high) for name in plain}

    def listed(self, key: str) -> Sequence["_Fields"]:
        value = self._plain.get(key) or []
        if not isinstance(value, list):
            self._refuse(key, "must be a list")
        return [_Fields(each, f"{self._where}: {key}") for each in value]

    def named(self, key: str) -> Mapping[str, "_Fields"]:
        value = self._plain.get(key) or {}
        if not isinstance(value, dict):
            self._refuse(key, "must be a JSON object")
        return {name: _Fields(each, f"{self._where}: {key}") for name, each in value.items()}

    def _refuse(self, key: str, bound: str) -> NoReturn:
        raise CreditError(f"{self._where}: {key} {bound}")


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)  # JSON has no NaN, though Python writes it
