"""Two models on the same users, and one model in two periods."""

from datetime import date

import numpy as np
import pytest

from credit_client.shard import Example
from credit_client.validation.challenger import challenge
from credit_client.validation.periods import out_of_time, score_psi
from credit_client.validation.sample import Sample
from credit_common.delong import paired_error
from credit_common.record import Record

MARK = ("approve below", 0.2)


def pds_of(logits):
    return 1 / (1 + np.exp(-logits))


def test_a_better_challenger_is_told_with_its_interval_and_swaps(drawn):
    truth, _, labels = drawn(2000)
    draw = np.random.default_rng(4)
    weak, strong = truth + draw.normal(0, 2, 2000), truth + draw.normal(0, 0.3, 2000)
    told = challenge(labels, (weak, pds_of(weak)), (strong, pds_of(strong)), MARK, left_out=7)
    assert told.low > 0
    assert told.p_value < 1e-6
    assert told.auc_difference == pytest.approx(told.challenger.auc - told.champion.auc)
    error = paired_error(strong, weak, labels)
    assert told.high - told.low == pytest.approx(2 * 1.959964 * error, rel=1e-6)
    both, entered, left, neither = told.swaps
    assert entered.users == left.users  # as many approvals
    assert both.users + left.users == (pds_of(weak) < 0.2).sum()
    assert both.users + entered.users == (pds_of(strong) < told.challenger_pd).sum()
    assert sum(o.users for o in told.swaps) == 2000
    assert sum(o.bads for o in told.swaps) == labels.sum()
    assert entered.bad_rate < left.bad_rate
    assert neither.bad_rate > both.bad_rate
    assert told.left_out == 7


def test_a_model_does_not_beat_itself(drawn):
    logits, pds, labels = drawn(300)
    told = challenge(labels, (logits, pds), (logits, pds), MARK)
    assert (told.auc_difference, told.p_value) == (0, None)
    assert [o.users for o in told.swaps[1:3]] == [0, 0]
    assert told.swaps[1].bad_rate is None


def test_scale_alone_swaps_nobody(drawn):
    """The challenger's PDs are all lower; it lets in the same people at the same number."""
    logits, pds, labels = drawn(300)
    told = challenge(labels, (logits, pds), (logits - 2, pds_of(logits - 2)), MARK)
    assert [o.users for o in told.swaps[1:3]] == [0, 0]
    assert told.challenger_pd < 0.2


def sample_of(days, logits, labels):
    examples = tuple(
        Example(
            key=f"{i:064x}",
            row=i,
            record=Record(values={}, protected={}, label=1),
            time=None if np.isnan(day) else float(day),
        )
        for i, day in enumerate(days)
    )
    return Sample(examples=examples, labels=labels, logits=logits, pds=pds_of(logits))


START = (date(2025, 7, 1) - date(1970, 1, 1)).days


def test_users_are_split_at_midnight_and_each_period_has_its_figures(drawn):
    logits, _, labels = drawn(403)
    days = np.concatenate([np.full(200, START - 0.001), np.full(200, START), [np.nan] * 3])
    logits[200:400] += 0.7
    told = out_of_time(sample_of(days, logits, labels), date(2025, 7, 1))
    assert (told.before.users, told.after.users, told.untimed) == (200, 200, 3)
    assert (told.before.last, told.after.first) == ("2025-06-30", "2025-07-01")
    assert told.before.figures.bads == labels[:200].sum()
    assert told.after.figures.bads == labels[200:400].sum()
    assert told.psi > 0.1
    assert told.psi_band in ("shift", "large")


def test_the_psi_is_that_of_its_formula():
    draw = np.random.default_rng(0)
    old, new = draw.normal(0, 1, 1000), draw.normal(0.4, 1.1, 700)
    edges = np.sort(old)[::-1][99:-1:100][::-1]  # the least of each tenth but the lowest
    e = np.bincount(np.searchsorted(edges, old, "right"), minlength=10) / 1000
    a = np.bincount(np.searchsorted(edges, new, "right"), minlength=10) / 700
    assert e == pytest.approx(np.full(10, 0.1))
    assert score_psi(old, new) == pytest.approx(((a - e) * np.log(a / e)).sum())
    assert score_psi(old, old) == 0


def test_where_nothing_moves_the_psi_is_that_of_chance():
    found = []
    for seed in range(100):
        draw = np.random.default_rng(seed)
        days = np.array([START - 1] * 200 + [START] * 150)
        labels = (draw.random(350) < 0.3).astype(np.int64)
        told = out_of_time(sample_of(days, draw.normal(0, 1, 350), labels), date(2025, 7, 1))
        found.append((told.psi, told.psi_by_chance))
    seen, expected = np.mean(found, axis=0)
    assert seen == pytest.approx(expected, rel=0.15)


def test_a_period_of_few_users_is_counted_and_not_judged(drawn):
    logits, _, labels = drawn(230)
    days = np.array([START - 1] * 200 + [START] * 30)
    told = out_of_time(sample_of(days, logits, labels), date(2025, 7, 1))
    assert told.after.figures is None
    assert told.after.why_not == "30 users, must be at least 50"
    assert told.psi is None
    assert told.before.figures is not None
