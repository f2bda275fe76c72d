import dataclasses
import math

import numpy as np
import pytest

from credit_common.card_groups import NOT_COUNTED, groups_part
from credit_common.claim import Facts
from credit_common.contract import parse_contract
from credit_common.errors import ContractError
from credit_common.evaluation import rows_of
from credit_common.groups import (
    DECISIONS,
    count_all,
    count_columns,
    group_places,
    groups_to_json,
    read_groups,
)
from credit_common.record import OTHER, Record

BINS, LAST = 50, 3
SEX = ("f", "m", OTHER, None)
RATES = ("bad_rate", "approved", "declined", "approved_good", "approved_bad")
TWO = '[[fields]]\nname = "region"\nkind = "protected"\nvalues = ["n", "e", "s"]\n'


@pytest.fixture(scope="session")
def two(grouped_text):
    """Counts by two fields."""
    text = grouped_text.replace('groups = ["sex"]', 'groups = ["region", "sex"]')
    return parse_contract(text + TWO)


def records_of(sexes, regions=None):
    regions = regions if regions is not None else [None] * len(sexes)
    return [
        Record(values={}, protected={"sex": sex, "region": region}, label=0.0)
        for sex, region in zip(sexes, regions, strict=True)
    ]


def drawn(n, seed=0, shares=(0.5, 0.4, 0.05, 0.05), shift=0.0):
    """Users whose risk is the same in all groups, and whose scores are `shift` higher in group m.

    Returns scores (n, 1), labels and sexes.
    """
    draw = np.random.default_rng(seed)
    sexes = [SEX[i] for i in draw.choice(len(SEX), n, p=shares)]
    labels = (draw.random(n) < 0.25).astype(np.float32)
    scores = labels + draw.standard_normal(n) - 1.6
    scores += shift * np.array([sex == "m" for sex in sexes])
    return scores.astype(np.float32)[:, None], labels, sexes


def counted(contract, scores, labels, records, round_=LAST):
    return count_all(contract, scores, labels, group_places(contract, records), round_)


def facts_of(table):
    return Facts(
        rounds=LAST,
        holders=3,
        histogram=rows_of(table),
        evaluated=3,
        epsilon=1.0,
        holdout_epsilon=1.0,
        created="2026-01-01T00:00:00+00:00",
    )


def test_the_last_evaluation_alone_counts_by_groups(grouped, contract):
    assert [count_columns(grouped, r) for r in (1, 2, 3, 4)] == [50, 50, 50 + 3 * 4, 50]
    assert count_columns(contract, LAST) == BINS
    scores, labels, sexes = drawn(200)
    records = records_of(sexes)
    first = counted(grouped, scores, labels, records, round_=1)
    whole = counted(grouped, scores, labels, records)
    assert first.shape == (2, BINS)
    assert whole.shape == (2, BINS + 12)
    assert np.array_equal(whole[:, :BINS], first)


@pytest.mark.parametrize("spoilt", [None, np.nan, np.inf, -np.inf])
def test_a_user_is_in_one_cell_of_the_scores_and_one_of_each_field(two, spoilt):
    scores, labels, sexes = drawn(300)
    if spoilt is not None:
        scores[::2] = spoilt
    regions = [("n", "e", "s", OTHER, None)[i % 5] for i in range(300)]
    records = records_of(sexes, regions)
    whole = counted(two, scores, labels, records)
    assert whole.sum() == 3 * 300
    for user in range(0, 300, 7):
        keep = np.arange(300) != user
        less = counted(two, scores[keep], labels[keep], [records[i] for i in np.flatnonzero(keep)])
        moved = whole - less
        assert moved.min() == 0
        assert np.linalg.norm(moved) == math.sqrt(1 + 2)  # the plan's FieldHistograms(fields=3)


def test_each_user_is_counted_under_its_own_code_and_decision(grouped):
    sexes = ["f", "m", OTHER, None, "m"]
    # The cut-offs .15 and .4 as logits; a PD at a cut-off is past it.
    at = np.log([0.15 / 0.85, 0.4 / 0.6])
    scores = np.array([[at[0] - 0.01], [at[0] + 0.01], [at[1] + 0.01], [-9.0], [9.0]], np.float32)
    labels = np.array([0, 1, 0, 1, 1], np.float32)
    table = counted(grouped, scores, labels, records_of(sexes))[:, BINS:].reshape(2, 4, 3)
    found = {tuple(int(x) for x in place) for place in np.argwhere(table)}
    place = {name: i for i, name in enumerate(DECISIONS)}
    assert found == {
        (0, 0, place["approve"]),
        (1, 1, place["refer"]),
        (0, 2, place["decline"]),
        (1, 3, place["approve"]),
        (1, 1, place["decline"]),
    }
    assert table.sum() == 5


def test_figures_of_counts_without_noise_are_those_of_the_users(grouped):
    open_ = grouped.without_privacy()
    scores, labels, sexes = drawn(4000, shift=0.7)
    table = counted(open_, scores, labels, records_of(sexes)).astype(np.float64)
    (gaps,) = read_groups(open_, table, holders=3)
    pds = 1 / (1 + np.exp(-scores[:, 0].astype(np.float64)))
    approved, declined = pds < 0.15, pds >= 0.4
    rates = []
    for name, code in zip(("f", "m", "(other)", "(missing)"), SEX, strict=True):
        own = np.array([sex == code for sex in sexes])
        group = next(g for g in gaps.groups if g.name == name)
        good, bad = own & (labels == 0), own & (labels == 1)
        expected = {
            "users": own.sum(),
            "bad_rate": labels[own].mean(),
            "approved": approved[own].mean(),
            "declined": declined[own].mean(),
            "approved_good": approved[good].mean(),
            "approved_bad": approved[bad].mean(),
        }
        for what, value in expected.items():
            figure = getattr(group, what)
            assert figure.value == pytest.approx(value), (name, what)
            assert figure.low == pytest.approx(figure.high), (name, what)
        rates.append(expected)
    every = [each["approved"] for each in rates]
    assert gaps.parity_ratio.value == pytest.approx(min(every) / max(every))
    assert gaps.parity_difference.value == pytest.approx(max(every) - min(every))
    spans = [np.ptp([each[name] for each in rates]) for name in ("approved_good", "approved_bad")]
    assert gaps.odds_difference.value == pytest.approx(max(spans))
    assert gaps.four_fifths == "no"  # by .7 of a logit


def test_what_the_intervals_say_holds_without_the_noise(grouped):
    """All rates and gaps of a field at once. P(Binomial(600, .95) < .9 * 600) is below 1e-6.

    Intervals that hold together over groups alone, each kind of rate by itself, reach .8.
    """
    scores, labels, sexes = drawn(1500, shift=0.3)
    holders, sigma = 5, grouped.evaluation.noise_multiplier
    exact = counted(grouped, scores, labels, records_of(sexes)).astype(np.float64)
    (truth,) = read_groups(grouped.without_privacy(), exact, holders)
    draw, held = np.random.default_rng(1), 0
    for _ in range(600):
        noise = sigma * math.sqrt(holders) * draw.standard_normal(exact.shape)
        (gaps,) = read_groups(grouped, exact + noise, holders)
        pairs = [(gaps.parity_ratio, truth.parity_ratio)]
        pairs += [(gaps.parity_difference, truth.parity_difference)]
        for group, true in zip(gaps.groups, truth.groups, strict=True):
            pairs += [(getattr(group, rate), getattr(true, rate)) for rate in RATES]
        judged = [(found, true) for found, true in pairs if found is not None]
        held += all(found.low <= true.value <= found.high for found, true in judged)
    assert held >= 0.9 * 600


def test_luck_lets_no_small_group_be_judged(grouped):
    """50 codes of 29 users beside two large ones; P(Binomial(300, .05) > 45) is below 1e-6.

    A threshold of 1.96 standard deviations for each code lets one through in every other draw.
    """
    codes = tuple(f"c{i}" for i in range(52))
    fields = tuple(
        dataclasses.replace(f, values=codes) if f.name == "sex" else f for f in grouped.fields
    )
    many = dataclasses.replace(grouped, fields=fields)
    exact = np.zeros((2, 54, 3))
    exact[0, :50], exact[1, :50] = [20, 2, 1], [4, 1, 1]
    exact[0, 50:52], exact[1, 50:52] = [3000, 900, 300], [300, 400, 500]
    exact = np.concatenate([np.zeros((2, BINS)), exact.reshape(2, -1)], axis=1)
    draw, lucky, missed = np.random.default_rng(2), 0, 0
    for _ in range(300):
        noise = 10 * grouped.evaluation.noise_multiplier * draw.standard_normal(exact.shape)
        (gaps,) = read_groups(many, exact + noise, holders=100)
        lucky += any(group.approved is not None for group in gaps.groups[:50])
        missed += not gaps.parity_ratio.low <= 1.0 <= gaps.parity_ratio.high
    assert lucky <= 45
    assert missed <= 45


def test_small_groups_are_counted_and_not_judged(grouped):
    scores, labels, sexes = drawn(400, shares=(0.96, 0.04, 0.0, 0.0))
    table = counted(grouped, scores, labels, records_of(sexes)).astype(np.float64)
    (gaps,) = read_groups(grouped, table, holders=4)
    f, m = gaps.groups[:2]
    assert f.approved is not None
    assert (m.approved, m.bad_rate, m.declined) == (None, None, None)
    assert m.users.value == sexes.count("m")
    assert (gaps.parity_ratio, gaps.odds_difference, gaps.four_fifths) == (None, None, None)


@pytest.mark.parametrize(("users", "mark"), [(200_000, "yes"), (500, "unclear")])
def test_the_noise_may_hide_the_four_fifths_mark(grouped, users, mark):
    scores, labels, sexes = drawn(users, shares=(0.5, 0.5, 0.0, 0.0), shift=0.1)
    noisy = dataclasses.replace(
        grouped, evaluation=dataclasses.replace(grouped.evaluation, noise_multiplier=6.0)
    )
    table = counted(noisy, scores, labels, records_of(sexes)).astype(np.float64)
    (gaps,) = read_groups(noisy, table, holders=10)
    assert gaps.four_fifths == mark
    assert gaps.parity_ratio.low < gaps.parity_ratio.value < gaps.parity_ratio.high


def test_where_hardly_anybody_is_approved_the_mark_is_unclear(grouped):
    table = np.tile([[4.0, 500.0, 500.0], [0.0, 50.0, 400.0]], 4)
    draw = np.random.default_rng(4)
    for _ in range(20):
        noised = np.concatenate([np.zeros((2, BINS)), table], axis=1)
        noised += 20 * draw.standard_normal(noised.shape)
        (gaps,) = read_groups(grouped, noised, holders=100)
        assert gaps.four_fifths == "unclear"
        assert gaps.parity_ratio.high == 1
    nobody = np.tile([[0.0, 500.0, 500.0], [0.0, 50.0, 400.0]], 4)
    nobody = np.concatenate([np.zeros((2, BINS)), nobody], axis=1)
    (gaps,) = read_groups(grouped.without_privacy(), nobody, holders=1)
    assert (gaps.parity_ratio, gaps.four_fifths) == (None, None)


def test_a_code_called_other_is_told_from_codes_that_the_contract_lacks(grouped_text):
    contract = parse_contract(grouped_text.replace('["f", "m"]', '["f", "other", "a|b"]'))
    places = group_places(contract, records_of(["f", "other", "a|b", OTHER, None]))
    assert places[:, 0].tolist() == [0, 1, 2, 3, 4]
    scores, labels, _ = drawn(500)
    table = count_all(contract, scores, labels, np.arange(500)[:, None] % 5, LAST)
    (gaps,) = read_groups(contract, table.astype(float), holders=1)
    assert [g.name for g in gaps.groups] == ["f", "other", "a|b", "(other)", "(missing)"]
    part = groups_part(contract, facts_of(table.astype(float)))
    (row,) = [line for line in part.splitlines() if "a\\|b" in line]
    assert row.replace("\\|", "").count("|") == 8


def test_noise_alone_says_nothing(grouped):
    draw = np.random.default_rng(3)
    for _ in range(50):
        table = 4 * draw.standard_normal((2, count_columns(grouped, LAST)))
        (gaps,) = read_groups(grouped, table, holders=4)
        assert gaps.parity_ratio is None
        assert all(group.approved is None for group in gaps.groups)
        assert "nan" not in str(groups_to_json([gaps]))
        assert all(group.users.value >= 0 for group in gaps.groups)


def test_counts_of_an_earlier_round_have_no_groups_and_other_forms_are_refused(grouped):
    assert read_groups(grouped, np.ones((2, BINS)), holders=2) == ()
    with pytest.raises(ValueError, match=r"\(2, 61\): must be \(2, 62\) or \(2, 50\)"):
        read_groups(grouped, np.ones((2, 61)), holders=2)


def test_the_json_form_names_fields_groups_and_figures(two):
    scores, labels, sexes = drawn(3000)
    regions = ["nes"[i % 3] for i in range(3000)]
    table = counted(two, scores, labels, records_of(sexes, regions)).astype(np.float64)
    plain = groups_to_json(read_groups(two, table, holders=2))
    assert [each["field"] for each in plain] == ["region", "sex"]
    assert [group["name"] for group in plain[0]["groups"]] == [
        "n",
        "e",
        "s",
        "(other)",
        "(missing)",
    ]
    first = plain[0]["groups"][0]
    assert set(first["figures"]) == {
        *("users", "bad_rate", "approved", "declined", "approved_good", "approved_bad")
    }
    assert set(first["intervals"]) == set(first["figures"])
    assert first["figures"]["users"] == 1000


def test_the_card_shows_groups_or_says_that_nothing_shows_them(grouped, contract):
    scores, labels, sexes = drawn(3000, shift=0.7)
    table = counted(grouped, scores, labels, records_of(sexes)).astype(np.float64)
    part = groups_part(grouped, facts_of(table))
    assert f"| f | {sexes.count('f')} |" in part
    assert "Lowest approval rate over the highest 0." in part
    assert "four-fifths mark is MISSED" in part
    assert groups_part(contract, facts_of(table[:, :BINS])) is None
    assert "Measure that" in NOT_COUNTED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('["sex"]', '["age"]'), r"evaluation\.groups = \['age'\].*protected fields"),
        (('["sex"]', '["sex", "sex"]'), r"evaluation\.groups.*each field once"),
        (
            ("approve_below = 0.15\ndecline_from = 0.4\n", ""),
            r"evaluation\.groups = \('sex',\).*no cut-offs",
        ),
    ],
)
def test_groups_that_cannot_be_counted_are_refused(grouped_text, change, message):
    assert change[0] in grouped_text
    with pytest.raises(ContractError, match=message):
        parse_contract(grouped_text.replace(*change))


def test_groups_are_in_the_digest_and_change_nothing_of_what_is_trained(grouped, contract):
    without = dataclasses.replace(
        grouped, evaluation=dataclasses.replace(grouped.evaluation, groups=())
    )
    assert grouped.digest != without.digest
    assert grouped.untold().digest == contract.untold().digest
