"""The arms of a sweep: what is trained, on whose users, and how hold-out users are scored.

    federated     the contract's model, trained by all holders, with DP at each holder
    newcomers     the same, trained by four fifths of the holders; the others are scored
    wide_only     the wide part alone, federated
    text_only     text alone: LoRA and head, federated
    frozen_bert   head and wide part on frozen BERT, federated
    central       the contract's model, trained where all data is in one place, without DP
    central_dp    the same with DP at the same ε, its noise added once
    local_only    the better of two logistic regressions at each holder alone, without DP
    logistic      logistic regression over all holders' data, without DP
    gbm           gradient boosting over all holders' data, without DP
    untuned       logistic regression on what the head reads of frozen BERT, without DP
    tfidf         logistic regression on TF-IDF of all holders' texts, without DP

An arm that the contract has no use for gives None: one without what it would train, or that would
train all that the contract trains.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_client.training.examples import Examples
from credit_client.training.loop import score
from credit_common.contract import Contract
from credit_common.device import device_of
from credit_common.model import CreditModel
from credit_common.record import Record
from credit_common.sections import GroupName
from credit_simulations.federation import (
    Outcome,
    holdout_scores,
    simulate,
    under_edges,
)
from credit_simulations.sweep import alone
from credit_simulations.sweep.budget import at_epsilon
from credit_simulations.sweep.plan import Trial
from credit_simulations.sweep.users import Draw, Users, parties

CENTRAL = "central"
"""Name and size class of the one party of the central arms."""
NEWCOMER_GROUPS = 5

Scores = Mapping[str, NDArray[np.float64]]
"""Log odds of each holder's hold-out users, by holder."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What an arm ends with.

    Attributes:
        scores: Of the hold-out users that the arm is judged on.
        epsilon: Spent by the holder that spent most; None without DP.
        bytes_up: Of one holder in one round; 0 where nothing is sent.
        rounds: Round -> AUC as the coordinator reads it off the released histograms.
        predict: Scores other records as the arm does; None where it has no one way to.
    """

    scores: Scores
    epsilon: float | None = None
    bytes_up: int = 0
    rounds: Mapping[int, float] = field(default_factory=dict)
    predict: alone.Predict | None = None


def run_arm(users: Users, drawn: Draw, trial: Trial) -> Trained | None:
    """Run a trial's arm on its draw."""
    return _ARMS[trial.arm](users, drawn, trial)


def _federated(*groups: GroupName) -> "_Arm":
    def run(users: Users, drawn: Draw, trial: Trial) -> Trained | None:
        if not set(groups) < set(users.contract.model.train):
            return None
        contract = users.contract.training_only(*groups)
        return _federation(users, drawn, drawn, trial, contract)

    return run


def _newcomers(users: Users, drawn: Draw, trial: Trial) -> Trained | None:
    names = sorted(drawn.train)
    groups = len(names) if trial.leave_one_out else min(NEWCOMER_GROUPS, len(names))
    if len(names) < 2:
        return None
    order = np.random.default_rng(0).permutation(len(names))
    folds = range(groups) if trial.leave_one_out else [trial.seed % groups]
    parts = []
    for fold in folds:
        new = [names[i] for i in order[fold::groups]]
        old = [name for name in names if name not in new]
        part = _federation(users, drawn.only(old), drawn.only(new), trial, users.contract)
        parts.append(part)
    scores = {name: own for part in parts for name, own in part.scores.items()}
    spent = [part.epsilon for part in parts if part.epsilon is not None]
    # No rounds: the coordinator's AUC is of the users of who took part.
    return Trained(
        scores=scores,
        epsilon=max(spent, default=None),
        bytes_up=parts[0].bytes_up,
        predict=parts[0].predict if len(parts) == 1 else None,
    )


def _central(users: Users, drawn: Draw, trial: Trial) -> Trained:
    """The same apps with one holder that has everybody, and each person once."""
    contract = users.contract
    train = users.one_row_each(np.concatenate([drawn.train[name] for name in sorted(drawn.train)]))
    whole = ((CENTRAL, len(train)),)  # the size class is public, and a simulation knows the number
    contract = replace(
        contract,
        privacy=replace(contract.privacy, size_classes=whole),
        federation=replace(contract.federation, min_holders=1),
    )
    names = sorted(drawn.holdout)
    out = np.concatenate([drawn.holdout[name] for name in names])
    one = Draw(train={CENTRAL: train}, holdout={CENTRAL: out})
    trained = _federation(users, one, one, trial, contract)
    ends = np.cumsum([len(drawn.holdout[name]) for name in names])[:-1]
    scores = dict(zip(names, np.split(trained.scores[CENTRAL], ends), strict=True))
    return replace(trained, scores=scores, bytes_up=0)


def _federation(
    users: Users, drawn: Draw, judged: Draw, trial: Trial, contract: Contract
) -> Trained:
    """Train on one draw's holders and score another's hold-out users."""
    examples = _examples(users, contract)
    contract = at_epsilon(trial.entry.contract_at(contract, trial.epsilon), trial.epsilon)
    model = _model(users, contract)
    taking_part = parties(contract, drawn, examples)
    with tempfile.TemporaryDirectory(prefix="credit-sim-") as folder:
        outcome = simulate(
            contract,
            taking_part,
            model,
            ledgers=Path(folder),
            allow_no_privacy=trial.epsilon is None,
            seed=trial.seed,
        )
    others = taking_part if judged is drawn else parties(contract, judged, examples)
    others = under_edges(contract, others, outcome.edges)
    raw = holdout_scores(model, others, outcome.adapter)
    resolved = contract.with_edges(outcome.edges)

    def predict(records: Sequence[Record]) -> NDArray[np.float64]:
        own = Examples(model, resolved, records)
        return score(model, own, outcome.adapter)[:, 0].astype(np.float64)

    return Trained(
        scores={name: own[:, 0].astype(np.float64) for name, own in raw.items()},
        epsilon=None if trial.epsilon is None else outcome.epsilon,
        bytes_up=outcome.bytes_up,
        rounds=_rounds(outcome),
        predict=predict,
    )


def _rounds(outcome: Outcome) -> dict[int, float]:
    return {line.round: line.figures["auc"] for line in outcome.history if line.figures}


def _examples(users: Users, contract: Contract) -> Examples:
    groups = contract.model.train
    if "head" not in groups:
        return users.wide
    read = users.examples if "lora" in groups else users.at_cls
    return read if "wide" in groups else read.without_wide()


def _model(users: Users, contract: Contract) -> CreditModel:
    """The resident model where the groups are the contract's own, otherwise one of its own."""
    if contract.model.train == users.contract.model.train:
        users.model.contract = contract  # the same model, with the learning rates of this ε
        return users.model
    if not contract.model.reads_text:
        return CreditModel(contract, None, device_of("cpu"))
    return CreditModel(contract, users.model.backbone, users.model.device)


def _local_only(users: Users, drawn: Draw, trial: Trial) -> Trained | None:
    if not users.contract.wide_fields:
        return None
    parts = [_fit(alone.at_one_holder, users, drawn.only([name])) for name in drawn.train]
    return Trained(scores={name: own for part in parts for name, own in part.scores.items()})


def _pooled(fit: alone.Fit) -> "_Arm":
    def run(users: Users, drawn: Draw, trial: Trial) -> Trained | None:
        text = fit is alone.tfidf
        if not (users.contract.model.reads_text if text else users.contract.wide_fields):
            return None
        return _fit(fit, users, drawn)

    return run


def _untuned(users: Users, drawn: Draw, trial: Trial) -> Trained | None:
    if not users.contract.model.reads_text:
        return None
    vectors = users.at_cls.cls_vectors()
    train, out, split = _rows(drawn)
    scores = alone.on_vectors(vectors[train], users.labels[train], vectors[out])
    return Trained(scores=split(scores))


def _fit(fit: alone.Fit, users: Users, drawn: Draw) -> Trained:
    train, out, split = _rows(drawn)
    known = [users.records[i] for i in train]
    predict = fit(users.contract, known, users.labels[train])
    return Trained(scores=split(predict([users.records[i] for i in out])), predict=predict)


def _rows(drawn: Draw) -> tuple[NDArray[np.intp], NDArray[np.intp], Callable[[Any], Scores]]:
    """All training rows, all hold-out rows, and how scores of the latter are told by holder."""
    names = sorted(drawn.train)
    train = np.concatenate([drawn.train[name] for name in names])
    out = np.concatenate([drawn.holdout[name] for name in names])
    ends = np.cumsum([len(drawn.holdout[name]) for name in names])[:-1]
    return train, out, lambda scores: dict(zip(names, np.split(scores, ends), strict=True))


_Arm = Callable[[Users, Draw, Trial], Trained | None]
_ARMS: dict[str, _Arm] = {
    "federated": lambda users, drawn, trial: _federation(
        users, drawn, drawn, trial, users.contract
    ),
    "newcomers": _newcomers,
    "wide_only": _federated("wide"),
    "text_only": _federated("lora", "head"),
    "frozen_bert": _federated("head", "wide"),
    "central": _central,
    "central_dp": _central,
    "local_only": _local_only,
    "logistic": _pooled(alone.logistic),
    "gbm": _pooled(alone.gbm),
    "untuned": _untuned,
    "tfidf": _pooled(alone.tfidf),
}
