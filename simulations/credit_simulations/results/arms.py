"""The arms of a sweep: their order, their names for people, and what each is.

A file may hold arms that are not listed here; they come last, under their own names.
"""

PRIVATE = ("federated", "newcomers", "wide_only", "text_only", "frozen_bert")
"""Arms of the federation; without an ε they are the same arm at ε = ∞."""

LABEL = {
    "federated": "federated",
    "newcomers": "newcomers",
    "wide_only": "wide part only",
    "text_only": "text only",
    "frozen_bert": "frozen BERT",
    "local_only": "local only",
    "central_dp": "central, DP",
    "central": "central",
    "logistic": "logistic regression",
    "gbm": "boosted trees",
    "untuned": "untuned BERT",
    "tfidf": "TF-IDF",
}

MEANING = {
    "federated": "This system: LoRA adapters on BERT, a head and a wide part, trained at the "
    "holders, with noise added at each holder before anything leaves it.",
    "newcomers": "The federated model on the users of holders that took no part and spent no ε: a "
    "fifth of the holders, another one for each seed.",
    "wide_only": "The federation with the wide part alone: no text is read.",
    "text_only": "The federation with the text alone: no wide part.",
    "frozen_bert": "The federation with BERT frozen: only head and wide part are trained.",
    "local_only": "Every holder alone on its own users, with nothing sent and no DP: the better of "
    "two logistic regressions by its own cross-validation, on ranks of numbers and on the "
    "contract's bins.",
    "central_dp": "The same model over all holders' data in one place, with DP. The protected unit "
    "is one user of the pool, so that one noise covers all holders.",
    "central": "The same model over all holders' data in one place, without DP: what nobody may "
    "have, and the mark to come close to.",
    "logistic": "Logistic regression over all holders' data in one place, without DP.",
    "gbm": "Gradient-boosted trees over all holders' data in one place, without DP.",
    "untuned": "Logistic regression on what the head reads of the text, BERT as it comes, over all "
    "holders' data in one place, without DP.",
    "tfidf": "Logistic regression on TF-IDF of the words that BERT reads, over all holders' data "
    "in one place, without DP.",
}

UNKNOWN = "An arm that this version of the report does not know."


def order(arm: str) -> tuple[int, str]:
    """Sort key: listed arms in their order, then the others by name."""
    names = list(LABEL)
    return (names.index(arm) if arm in LABEL else len(names)), arm


def label(arm: str) -> str:
    """The arm's name for people."""
    return LABEL.get(arm, arm)


def level(epsilon: float | None) -> str:
    """ε as an axis has it.

    >>> level(8.0), level(0.5), level(None)
    ('8', '0.5', '∞')
    """
    return "∞" if epsilon is None else f"{epsilon:.12g}"


def ascending(epsilon: float | None) -> float:
    """Sort key of ε, without DP last."""
    return float("inf") if epsilon is None else epsilon
