"""One trial: the arm is run and judged, and its line of results.jsonl made."""

import math
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_common.metrics import auc_exact, ks_exact
from credit_simulations.sweep.arms import Scores, run_arm
from credit_simulations.sweep.perturbed import perturbed_aucs
from credit_simulations.sweep.plan import Entry, Trial
from credit_simulations.sweep.users import Draw, Users, draw, read_users

GROUPS = 10
"""Rows of a calibration table."""


def run_trial(trial: Trial) -> dict[str, Any] | None:
    """Run a trial and return its line; None where there is nothing to tell.

    That is where the contract has no use for the arm, or all users to judge by are of one label.
    The users of the last data set are kept from call to call.

    Raises:
        CreditError: Whatever data, contract or a ledger refuses.
    """
    users = _users(trial.entry)
    drawn = draw(users, trial)
    start = time.perf_counter()
    trained = run_arm(users, drawn, trial)
    if trained is None or not _of_both_labels(users, drawn, trained.scores):
        return None
    taken = time.perf_counter() - start
    spoilt = {}
    if trial.perturbed and trained.predict is not None:
        rows = np.sort(np.concatenate([drawn.holdout[name] for name in trained.scores]))
        rows = rows[np.linspace(0, len(rows) - 1, min(trial.perturbed, len(rows))).astype(int)]
        spoilt = perturbed_aucs(users.contract, [users.records[i] for i in rows], trained.predict)
    # Drawn holders are as many as were asked for, or each seed would be a setting of its own.
    holders = trial.entry.holders or len(drawn.train)
    return {
        "digest": trial.digest(users.contract, users.data_sha256),
        "data": trial.entry.name,
        "partition": trial.entry.spread,
        "holders": holders,
        "left_out": max(0, holders - len(drawn.train)),
        "arm": trial.arm,
        "epsilon": trial.epsilon,
        "seed": trial.seed,
        "folds": trial.folds,
        "leave_one_out": trial.leave_one_out,
        "held_out": users.contract.split.holdout,
        "delta": None if trial.epsilon is None else users.contract.privacy.delta,
        "epsilon_spent": trained.epsilon,
        **judged(users, drawn, trained.scores),
        "bytes_up": trained.bytes_up,
        "perturbed": {name: _told(auc) for name, auc in spoilt.items()},
        "rounds": [{"round": n, "auc": _told(auc)} for n, auc in trained.rounds.items()],
        "seconds": round(taken, 2),
    }


def _of_both_labels(users: Users, drawn: Draw, names: Iterable[str]) -> bool:
    return len({label for name in names for label in users.labels[drawn.holdout[name]]}) == 2


def judged(users: Users, drawn: Draw, scores: Scores) -> dict[str, Any]:
    """Exact figures of log odds on the hold-out users that were scored."""
    names = sorted(scores)
    rows = np.concatenate([drawn.holdout[name] for name in names])
    labels, odds = users.labels[rows], np.concatenate([scores[n] for n in names])
    chance = 1.0 / (1.0 + np.exp(-np.clip(odds, -30.0, 30.0)))
    inside = {name: auc_exact(scores[name], users.labels[drawn.holdout[name]]) for name in names}
    best = None
    if "true_pd" in users.frame:
        best = auc_exact(users.frame["true_pd"].to_numpy(np.float64)[rows], labels)
    return {
        "auc": _told(auc_exact(odds, labels)),
        "ks": _told(ks_exact(odds, labels)),
        "brier": _told(float(np.mean((chance - labels) ** 2))),
        "in_holder_auc": _mean([auc for auc in inside.values() if math.isfinite(auc)]),
        "in_holder": {
            name: {"auc": _told(inside[name]), "users": len(drawn.holdout[name])} for name in names
        },
        "calibration": _calibration(chance, labels),
        "best_auc": None if best is None else _told(best),
    }


def _calibration(chance: NDArray[np.float64], labels: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Mean predicted and observed default rate in groups of equal size, by predicted rate."""
    parts = np.array_split(np.argsort(chance, kind="stable"), GROUPS)
    return [
        {
            "predicted": _told(float(chance[part].mean())),
            "observed": _told(float(labels[part].mean())),
            "users": len(part),
        }
        for part in parts
        if len(part)
    ]


@lru_cache(maxsize=1)
def _users(entry: Entry) -> Users:
    return read_users(entry)


def _mean(values: list[float]) -> float | None:
    return _told(float(np.mean(values))) if values else None


def _told(value: float) -> float | None:
    """Six decimals; None for what is not a number."""
    return round(value, 6) if math.isfinite(value) else None
