"""What a merchant could do without the federation: logistic regression, central and alone.

Both read the very wide features that the model reads, without privacy, and choose their strength of
regularisation by cross-validation on the training users.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_simulations.federation import Party

STRENGTHS = tuple(10.0**power for power in range(-1, 4))


def central_logistic(parties: Sequence[Party]) -> dict[str, NDArray[np.float64]]:
    """Scores of each holder's hold-out users by one regression over all training users."""
    features = np.concatenate([party.train.wide for party in parties])
    labels = np.concatenate([party.train.labels for party in parties])
    fitted = _logistic(features, labels)
    return {party.name: fitted.decision_function(party.holdout.wide) for party in parties}


def local_logistic(parties: Sequence[Party]) -> dict[str, NDArray[np.float64]]:
    """Scores of each holder's hold-out users by a regression over its own training users."""
    return {
        party.name: _logistic(party.train.wide, party.train.labels).decision_function(
            party.holdout.wide
        )
        for party in parties
    }


def _logistic(features: NDArray[np.float32], labels: NDArray[np.float32]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

    regression = LogisticRegression(max_iter=300)
    search = GridSearchCV(regression, {"C": STRENGTHS}, scoring="roc_auc", cv=5)
    with threadpool_limits(1):  # products this small are five times slower on two threads
        return search.fit(features, labels)
