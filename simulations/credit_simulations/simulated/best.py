"""The best AUC that a score can have on simulated rows.

The true PD orders people as well as can be: by the lemma of Neyman and Pearson no other score has a
higher expected AUC. What a merchant observes shows the latent traits only in part, so that even a
perfect model of the columns stays below.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from credit_common.metrics import auc_exact


def best_auc(frame: pd.DataFrame, label: str = "default") -> float:
    """The AUC of `true_pd` against the labels as they fell, 0 to 1.

    A person at several merchants counts once for each row.

    Raises:
        ValueError: If the labels are all the same.
    """
    return auc_exact(frame["true_pd"].to_numpy(), frame[label].to_numpy())


def expected_auc(pd: ArrayLike) -> float:
    """What `best_auc` comes near to over many draws of independent labels, 0 to 1.

    sum over pairs of p_i (1 - p_j) [p_i > p_j], ties as a half, over sum of p_i (1 - p_j), i != j:
    the ratio of the expected numbers of concordant and of all pairs of a default and a non-default.

    Args:
        pd: Probabilities of default, shape (n,), n at least 2, not all 0 or all 1.

    Example:
        >>> expected_auc([0.5, 0.5]), expected_auc([0.0, 1.0])
        (0.5, 1.0)
        >>> round(expected_auc([0.1, 0.9]), 4)  # .81 of .82
        0.9878
    """
    p = np.sort(np.asarray(pd, np.float64))
    values, counts = np.unique(p, return_counts=True)
    good = (1.0 - values) * counts
    below = np.cumsum(good) - good
    own = (1.0 - values) * (counts - 1)  # a row makes no pair with itself
    won = float((values * counts * (below + own / 2)).sum())
    pairs = float(p.sum() * (1.0 - p).sum() - (p * (1.0 - p)).sum())
    return won / pairs
