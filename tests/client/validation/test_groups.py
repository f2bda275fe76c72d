"""Groups: rates counted by hand, small groups counted and not judged, the four-fifths mark."""

import numpy as np
import pytest
from fairlearn.metrics import (
    demographic_parity_difference,
    demographic_parity_ratio,
    equalized_odds_difference,
    equalized_odds_ratio,
)

from credit_client.shard import Example
from credit_client.validation.fairness import fairness
from credit_client.validation.sample import Sample
from credit_common.contract import parse_contract
from credit_common.metrics import auc_exact
from credit_common.record import OTHER, Record

MARKS = (("approve below", 0.15), ("decline from", 0.4))


def sample_of(codes, logits, pds, labels):
    examples = tuple(
        Example(key=f"{i:064x}", row=i, record=Record(values={}, protected={"sex": code}, label=1))
        for i, code in enumerate(codes)
    )
    return Sample(examples=examples, labels=labels, logits=logits, pds=pds)


@pytest.fixture
def mixed(drawn):
    codes = np.array(["f", "m"] * 150 + [None] * 40 + [OTHER] * 10, object)
    return codes, *drawn(350)


def test_rates_are_what_counting_says(contract, mixed):
    codes, logits, pds, labels = mixed
    (told,) = fairness(contract, sample_of(codes, logits, pds, labels), MARKS)
    assert told.field == "sex"
    assert [(g.name, g.users, g.judged) for g in told.groups] == [
        ("f", 150, True),
        ("m", 150, True),
        ("(other)", 10, False),
        ("(missing)", 40, True),
    ]
    assert [at.pd for at in told.at] == [0.15, 0.4]
    for group in told.groups[:2]:
        own = codes == group.name
        assert group.auc == auc_exact(logits[own], labels[own])
        assert group.bad_rate == labels[own].mean()
        assert group.mean_pd == pds[own].mean()
    for at in told.at:
        shares = {}
        for code, name in (("f", "f"), ("m", "m"), (None, "(missing)")):
            own = np.array([each is code or each == code for each in codes])
            below = pds[own] < at.pd
            good = labels[own] == 0
            shares[name] = (below.mean(), below[good].mean(), below[~good].mean())
        rows = {g.name: (g.approved, g.approved_good, g.approved_bad) for g in at.groups}
        assert rows.keys() == shares.keys()
        for name, expected in shares.items():
            assert rows[name] == pytest.approx(expected)
        approved, good, bad = zip(*shares.values(), strict=True)
        assert at.parity_difference == pytest.approx(max(approved) - min(approved))
        assert at.parity_ratio == pytest.approx(min(approved) / max(approved))
        assert at.odds_difference == pytest.approx(max(np.ptp(good), np.ptp(bad)))
        ratios = [min(good) / max(good), min(bad) / max(bad)]
        assert at.odds_ratio == pytest.approx(min(ratios))
        assert at.four_fifths == (at.parity_ratio >= 0.8)
        judged = codes != OTHER
        names = np.array([str(code) for code in codes[judged]])
        theirs = {"sensitive_features": names, "y_pred": (pds < at.pd)[judged].astype(int)}
        for function, figure in (
            (demographic_parity_difference, at.parity_difference),
            (demographic_parity_ratio, at.parity_ratio),
            (equalized_odds_difference, at.odds_difference),
            (equalized_odds_ratio, at.odds_ratio),
        ):
            assert function(1 - labels[judged], **theirs) == pytest.approx(figure)


def test_a_declared_code_is_not_taken_for_one_that_is_not_known(contract_text, mixed):
    declared = contract_text.replace('["f", "m"]', '["other", "missing", "m"]')
    contract = parse_contract(declared)
    codes, logits, pds, labels = mixed
    codes[codes == "f"] = "other"
    codes[:2] = "missing"
    (told,) = fairness(contract, sample_of(codes, logits, pds, labels), MARKS)
    assert [(g.name, g.users) for g in told.groups] == [
        ("other", 149),
        ("missing", 2),
        ("m", 149),
        ("(other)", 10),
        ("(missing)", 40),
    ]


def test_users_of_small_groups_change_no_figure_but_their_count(contract, mixed):
    codes, logits, pds, labels = mixed
    (before,) = fairness(contract, sample_of(codes, logits, pds, labels), MARKS)
    other = codes == OTHER
    changed, flipped = pds.copy(), labels.copy()
    changed[other], flipped[other] = 0.999, 1 - labels[other]
    (after,) = fairness(contract, sample_of(codes, logits, changed, flipped), MARKS)
    assert after == before
    small = next(group for group in after.groups if group.name == "(other)")
    assert (small.bad_rate, small.mean_pd, small.auc, small.brier) == (None,) * 4


def test_four_fifths_is_a_mark_of_the_ratio(contract):
    codes = np.array(["f"] * 100 + ["m"] * 100, object)
    labels = np.tile([0, 1], 100)
    for approved, passes in ((80, True), (79, False)):
        pds = np.concatenate([np.full(100, 0.1), np.full(approved, 0.1), np.ones(100 - approved)])
        (told,) = fairness(contract, sample_of(codes, pds, pds, labels), MARKS[:1])
        assert told.at[0].parity_ratio == pytest.approx(approved / 100)
        assert told.at[0].four_fifths is passes


def test_where_nobody_is_approved_there_is_no_ratio(contract, mixed):
    codes, logits, _, labels = mixed
    (told,) = fairness(contract, sample_of(codes, logits, np.ones(350), labels), MARKS[:1])
    (at,) = told.at
    assert (at.parity_difference, at.parity_ratio, at.four_fifths) == (0, None, None)
    assert at.odds_ratio is None


def test_a_group_of_one_class_has_no_odds_and_no_auc(contract, mixed):
    codes, logits, pds, labels = mixed
    labels[codes == "f"] = 0
    (told,) = fairness(contract, sample_of(codes, logits, pds, labels), MARKS[:1])
    assert told.groups[0].auc is None
    (women,) = [g for g in told.at[0].groups if g.name == "f"]
    assert (women.approved_good, women.approved_bad) == (None, None)
    assert told.at[0].odds_difference is not None  # of the other two


def test_one_group_alone_is_compared_with_nobody(contract, drawn):
    logits, pds, labels = drawn(80)
    codes = np.array(["f"] * 60 + ["m"] * 20, object)
    (told,) = fairness(contract, sample_of(codes, logits, pds, labels), MARKS)
    assert told.at == ()
