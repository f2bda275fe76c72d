"""What the released model brings to shops that took no part and spend no ε.

Each shop's own hold-out users are scored twice: by the released model, and by a logistic regression
over the shop's own training users, which is what it could do alone. Both AUCs are within the shop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from credit_client.shard import Shard
from credit_client.training.examples import Examples
from credit_common.contract import Contract
from credit_common.metrics import auc_exact
from credit_common.model import Arrays, CreditModel
from credit_simulations.baselines import local_logistic
from credit_simulations.federation import Party, holdout_scores, nearest_size_class

MIN_ROWS = 300
"""Fewest rows of a newcomer; below, its own AUC is mostly chance."""
FEWEST_OF_A_CLASS = 5
"""Fewest training users of either class, one for each fold of the local cross-validation."""


@dataclass(frozen=True, kw_only=True)
class Newcomer:
    """One shop that took no part.

    Attributes:
        train, holdout: Its users on each side of the split.
        auc: Of the released model on its hold-out users.
        auc_local: Of its own logistic regression on the same users.
    """

    name: str
    train: int
    holdout: int
    auc: float
    auc_local: float


@dataclass(frozen=True, kw_only=True)
class Newcomers:
    """All newcomers.

    Attributes:
        shops: By name, those whose AUCs are defined.
        left_out: Name -> why the shop has no figures.
    """

    shops: tuple[Newcomer, ...]
    left_out: Mapping[str, str]

    @property
    def auc(self) -> float:
        """Mean over shops of the released model's AUC; nan without any shop."""
        return _mean([shop.auc for shop in self.shops])

    @property
    def auc_local(self) -> float:
        """Mean over shops of the local AUC; nan without any shop."""
        return _mean([shop.auc_local for shop in self.shops])

    @property
    def gained(self) -> int:
        """Shops that the released model orders better than their own."""
        return sum(shop.auc > shop.auc_local for shop in self.shops)


def welcome(
    contract: Contract, shards: Mapping[str, Shard], model: CreditModel, adapter: Arrays
) -> Newcomers:
    """Score every newcomer's hold-out users by the released model and by its own.

    Only hold-out texts pass through BERT: the local regression reads wide features alone.

    Args:
        contract: A binary task with a wide part.
        shards: Shard of each newcomer by name.
        model: The resident model.
        adapter: The released adapter.
    """
    without_text = contract.training_only("wide")
    parties, left_out = [], {}
    for name, shard in sorted(shards.items()):
        reason = _undefined(shard)
        if reason:
            left_out[name] = reason
            continue
        parties.append(
            Party(
                name=name,
                size_class=nearest_size_class(contract, len(shard.train)),
                train=Examples(model, without_text, [e.record for e in shard.train]),
                holdout=Examples(model, contract, [e.record for e in shard.holdout]),
            )
        )
    scores, local = holdout_scores(model, parties, adapter), local_logistic(parties)
    shops = tuple(
        Newcomer(
            name=party.name,
            train=len(party.train),
            holdout=len(party.holdout),
            auc=auc_exact(scores[party.name][:, 0], party.holdout.labels),
            auc_local=auc_exact(local[party.name], party.holdout.labels),
        )
        for party in parties
    )
    return Newcomers(shops=shops, left_out=left_out)


def _undefined(shard: Shard) -> str:
    """Why a shop has no two AUCs, or nothing."""
    held_out = [e.record.label for e in shard.holdout]
    if len(set(held_out)) < 2:
        return "hold-out users of one class only"
    labels = [e.record.label for e in shard.train]
    if min(labels.count(label) for label in (0.0, 1.0)) < FEWEST_OF_A_CLASS:
        return f"fewer than {FEWEST_OF_A_CLASS} training users of a class"
    return ""


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
