"""Figures to hold a sweep against, each with its source. None of them is of the sweep itself."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """One figure of somebody else, or of the data set in one place.

    Attributes:
        data: The data set, as trials name it.
        epsilon: Of their differential privacy; None without.
        auc: Over all users.
    """

    data: str
    what: str
    epsilon: float | None
    auc: float
    source: str


MADDOCK = "Maddock et al., CCS 2022"
"""Federated Boosted Decision Trees with Differential Privacy."""
FOLDS = "this project, 5-fold cross-validation"
"""Logistic regression: one-hot and rank-normal columns; trees: LightGBM. All data in one place."""

_TREES = "federated DP trees"
_LR, _GBM = "logistic regression, all data", "LightGBM, all data"

PUBLISHED = (
    Published(data="gmsc", what=_TREES, epsilon=1.0, auc=0.847, source=MADDOCK),
    Published(data="gmsc", what=_TREES, epsilon=0.5, auc=0.845, source=MADDOCK),
    Published(data="gmsc", what=_TREES, epsilon=0.1, auc=0.842, source=MADDOCK),
    Published(data="gmsc", what=_LR, epsilon=None, auc=0.841, source=FOLDS),
    Published(data="gmsc", what=_GBM, epsilon=None, auc=0.866, source=FOLDS),
    Published(data="pakdd2009", what=_LR, epsilon=None, auc=0.674, source=FOLDS),
    Published(data="pakdd2009", what=_GBM, epsilon=None, auc=0.683, source=FOLDS),
    Published(data="taiwan", what=_LR, epsilon=None, auc=0.735, source=FOLDS),
    Published(data="taiwan", what=_GBM, epsilon=None, auc=0.784, source=FOLDS),
    Published(data="german", what=_LR, epsilon=None, auc=0.784, source=FOLDS),
    Published(data="german", what=_GBM, epsilon=None, auc=0.786, source=FOLDS),
    Published(
        data="lendingclub", what=f"{_LR}, text left out", epsilon=None, auc=0.686, source=FOLDS
    ),
    Published(
        data="lendingclub", what=f"{_GBM}, text left out", epsilon=None, auc=0.701, source=FOLDS
    ),
)


def published(data: str) -> list[Published]:
    """What is known of a data set; nothing for one that is not listed."""
    return [figure for figure in PUBLISHED if figure.data == data]
