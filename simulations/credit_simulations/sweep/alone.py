"""What a data scientist does with the data at hand, in one place or at one holder.

Numbers go in as ranks under a normal law, or as they are (trees), categories one-hot or as such,
texts as the words that BERT would read. None has DP; strengths are chosen by cross-validation on
the training users. `at_one_holder` tries the contract's bins too, which every holder has.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.fields import NumberField
from credit_common.record import OTHER, Record
from credit_common.text import record_text, wide_features, wide_scale

Scores = NDArray[np.float64]
Labels = NDArray[np.float32]
Predict = Callable[[Sequence[Record]], Scores]
"""Records -> log odds."""
Fit = Callable[[Contract, Sequence[Record], Labels], Predict]
"""Contract, training records and their labels -> how others are scored."""

STRENGTHS = tuple(10.0**power for power in range(-3, 2))
"""C of scikit-learn's logistic regression."""
FOLDS = 3
_WORDS = r"[\u3400-\u9fff]|[^\W_]+"
"""A word, or one Chinese character."""


def logistic(contract: Contract, train: Sequence[Record], labels: Labels) -> Predict:
    """Logistic regression on rank-normal numbers and one-hot categories."""
    return _on_ranks(contract, train, labels)[0]


def at_one_holder(contract: Contract, train: Sequence[Record], labels: Labels) -> Predict:
    """The better of two logistic regressions, on ranks as above and on the contract's bins.

    Which one is chosen by the cross-validation that chooses their strengths. Users of one class
    alone give everybody the same log odds: those of (defaults + 1) to (others + 1).
    """
    bad = float(labels.sum())
    if bad in (0.0, float(len(labels))):
        odds = float(np.log((bad + 1) / (len(labels) - bad + 1)))
        return lambda records: np.full(len(records), odds)
    tried = [_on_ranks(contract, train, labels)]
    if not contract.federated_fields:  # their edges are the federation's
        tried.append(_on_bins(contract, train, labels))
    return max(tried, key=lambda found: found[1])[0]  # the first where both are the same


def _on_ranks(contract: Contract, train: Sequence[Record], labels: Labels) -> tuple[Predict, float]:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, QuantileTransformer

    frame = _frame(contract, train)
    numbers = [f.name for f in contract.wide_fields if isinstance(f, NumberField)]
    codes = [f.name for f in contract.wide_fields if not isinstance(f, NumberField)]
    ranks = QuantileTransformer(
        output_distribution="normal", n_quantiles=min(1000, len(frame)), subsample=None
    )
    missing = SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True)
    prepared = ColumnTransformer(
        [
            ("numbers", make_pipeline(ranks, missing), numbers),
            ("codes", OneHotEncoder(handle_unknown="ignore"), codes),
        ],
        sparse_threshold=0.0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")  # a number that a holder never has
        decide, auc = _regression(prepared.fit_transform(frame), labels)
    return lambda records: decide(prepared.transform(_frame(contract, records))), auc


def _on_bins(contract: Contract, train: Sequence[Record], labels: Labels) -> tuple[Predict, float]:
    def binned(records: Sequence[Record]) -> NDArray[np.float32]:
        rows = np.stack([wide_features(contract, record) for record in records])
        return rows * np.float32(wide_scale(contract))  # ones and zeros again

    decide, auc = _regression(binned(train), labels)
    return lambda records: decide(binned(records)), auc


def gbm(contract: Contract, train: Sequence[Record], labels: Labels) -> Predict:
    """Gradient boosting by histograms (as LightGBM), stopped early on a tenth of the users."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=500,
        max_leaf_nodes=15,
        min_samples_leaf=50,
        l2_regularization=1.0,
        early_stopping=True,
        n_iter_no_change=20,
        categorical_features="from_dtype",
        random_state=0,
    )
    known = _frame(contract, train)
    told = [name for name in known if known[name].nunique() > 1]  # others it cannot bin
    trees.fit(known[told], labels)

    def predict(records: Sequence[Record]) -> Scores:
        scores: Scores = trees.decision_function(_frame(contract, records)[told])
        return scores

    return predict


def tfidf(contract: Contract, train: Sequence[Record], labels: Labels) -> Predict:
    """Logistic regression on TF-IDF of the words, and pairs of words, that BERT would read."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(
        token_pattern=_WORDS, ngram_range=(1, 2), min_df=5, max_features=50_000, sublinear_tf=True
    )

    def said(records: Sequence[Record]) -> list[str]:
        return [record_text(contract, record) for record in records]

    decide, _ = _regression(words.fit_transform(said(train)), labels)
    return lambda records: decide(words.transform(said(records)))


def on_vectors(known: NDArray[np.float32], labels: Labels, score: NDArray[np.float32]) -> Scores:
    """Logistic regression on standardised vectors, (n, width)."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    decide, _ = _regression(scaler.fit_transform(known), labels)
    return decide(scaler.transform(score))


def _regression(features: Any, labels: Labels) -> tuple[Callable[[Any], Scores], float]:
    """Features -> log odds, and its AUC in the cross-validation: .5 where users are too few."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

    folds = min(FOLDS, int(np.bincount(labels.astype(int)).min()))
    regression = LogisticRegression(max_iter=300)
    if folds >= 2:
        split = StratifiedKFold(folds, shuffle=True, random_state=0)
        regression = GridSearchCV(regression, {"C": STRENGTHS}, scoring="roc_auc", cv=split)
    # Products this small are slower on several threads. Weak penalties that have not converged are
    # candidates too; the cross-validation judges them as they are.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = regression.fit(features, labels)
    decide: Callable[[Any], Scores] = fitted.decision_function
    return decide, float(getattr(fitted, "best_score_", 0.5))


def _frame(contract: Contract, records: Sequence[Record]) -> pd.DataFrame:
    """Wide fields as columns: float64 with NaN, or categories of the contract's codes."""
    columns: dict[str, Any] = {}
    for field in contract.wide_fields:
        values = [record.values.get(field.name) for record in records]
        if isinstance(field, NumberField):
            columns[field.name] = np.asarray(
                [np.nan if v is None else float(v) for v in values], np.float64
            )
        else:
            codes = [_MISSING if v is None else str(v) for v in values]
            known = [*field.values, OTHER, _MISSING]
            columns[field.name] = pd.Categorical(codes, categories=known)
    return pd.DataFrame(columns)


_MISSING = "(missing)"
