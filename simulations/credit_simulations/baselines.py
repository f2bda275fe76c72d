"""What a merchant could do without the federation: logistic regression, central and alone.

Both read the very wide features that the model reads, without privacy, and choose their strength of
regularisation by cross-validation on the training users.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_simulations.federation import Party

STRENGTHS = np.geomspace(0.1, 1000.0, 7)


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
    from sklearn.linear_model import LogisticRegressionCV

    model = LogisticRegressionCV(
        Cs=STRENGTHS, cv=5, scoring="roc_auc", max_iter=300, use_legacy_attributes=False
    )
    return model.fit(features, labels)
