import math
import time
import warnings

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from credit_common import accountant
from credit_common.accountant import (
    epsilon,
    epsilon_rdp,
    epsilon_replace_one,
    solve_noise_multiplier,
)
from credit_common.errors import PrivacyError
from credit_common.events import FieldHistograms, Histogram, SampledGaussian


def steps(q, sigma, number):
    return SampledGaussian(sampling_rate=q, noise_multiplier=sigma, steps=number)


def gaussian_epsilon(mu, delta):
    """The exact ε of a Gaussian mechanism (Balle and Wang 2018)."""

    def excess(e):
        return norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu) - delta

    return brentq(excess, 0, 200)


@pytest.mark.parametrize(
    ("q", "sigma", "number", "expected"),
    [(0.05, 1.0, 600, 8.289), (0.02, 0.8, 1000, 6.419), (0.01, 0.6, 2000, 9.954)],
)
def test_epsilon_has_the_reference_values(q, sigma, number, expected):
    assert epsilon([steps(q, sigma, number)], 1e-5) == pytest.approx(expected, abs=0.01)


def test_many_small_losses_are_not_rounded_up_by_much():
    fine = 1.6374  # on a loss grid five times finer
    assert fine <= epsilon([steps(0.001, 1.0, 100_000)], 1e-5) <= fine + 0.006


def test_replace_one_has_the_reference_value():
    assert epsilon_replace_one([steps(0.05, 1.0, 600)], 1e-5) == pytest.approx(13.58, abs=0.02)


def test_a_mixed_history_is_a_bound_close_to_googles_own_accountant():
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    history = [steps(0.05, 1.0, 100), Histogram(noise_multiplier=20.0), steps(0.02, 0.8, 50)]
    reference = PLDAccountant()
    for event in history[0], history[2]:
        one = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        reference.compose(
            dp_accounting.PoissonSampledDpEvent(event.sampling_rate, one), event.steps
        )
    reference.compose(dp_accounting.GaussianDpEvent(20.0))
    expected = reference.get_epsilon(1e-5)
    assert expected - 1e-6 <= epsilon(history, 1e-5) <= expected + 1e-3


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8, 1e-12])
def test_unsampled_releases_agree_with_the_exact_gaussian(delta):
    exact = gaussian_epsilon(0.5, delta)
    four = epsilon([Histogram(noise_multiplier=4.0, releases=4)], delta)
    whole = epsilon([steps(1.0, 4.0, 4)], delta)
    assert exact <= four == pytest.approx(exact, rel=0.002)
    assert exact <= whole == pytest.approx(exact, rel=0.002)


def test_a_replaced_record_moves_a_sum_by_two_and_a_histogram_by_root_two():
    whole = epsilon_replace_one([steps(1.0, 10.0, 1)], 1e-5)
    cells = epsilon_replace_one([Histogram(noise_multiplier=10.0)], 1e-5)
    assert whole == pytest.approx(gaussian_epsilon(0.2, 1e-5), rel=0.002)
    assert cells == pytest.approx(gaussian_epsilon(math.sqrt(2) / 10, 1e-5), rel=0.002)


@pytest.mark.parametrize("fields", [1, 3, 30])
@pytest.mark.parametrize("of", [epsilon, epsilon_replace_one, epsilon_rdp])
def test_counts_of_several_fields_are_one_histogram_of_less_noise(of, fields):
    """Sensitivity sqrt(F) with noise σ is sensitivity 1 with σ / sqrt(F)."""
    rest = [steps(0.05, 1.0, 60), Histogram(noise_multiplier=20.0)]
    for others in [], rest:
        counted = of([*others, FieldHistograms(noise_multiplier=12.0, fields=fields)], 1e-5)
        same = Histogram(noise_multiplier=12.0 / math.sqrt(fields))
        assert counted == pytest.approx(of([*others, same], 1e-5), rel=1e-9)


@pytest.mark.parametrize("fields", [1, 12])
def test_counts_of_fields_agree_with_the_exact_gaussian(fields):
    event = FieldHistograms(noise_multiplier=10.0, fields=fields, releases=2)
    mu = math.sqrt(2 * fields) / 10
    assert epsilon([event], 1e-5) == pytest.approx(gaussian_epsilon(mu, 1e-5), rel=0.002)
    changed = math.sqrt(2) * mu  # one user moves between two cells of each field
    found = epsilon_replace_one([event], 1e-5)
    assert found == pytest.approx(gaussian_epsilon(changed, 1e-5), rel=0.002)


def test_noise_is_solved_for_with_what_else_is_spent():
    counted = FieldHistograms(noise_multiplier=8.0, fields=10)
    alone = solve_noise_multiplier(0.05, 300, 8.0, 1e-5)
    beside = solve_noise_multiplier(0.05, 300, 8.0, 1e-5, [counted])
    assert beside > alone
    spent = epsilon([steps(0.05, beside, 300), counted], 1e-5)
    assert spent <= 8.0 < epsilon([steps(0.05, beside - 0.002, 300), counted], 1e-5)
    with pytest.raises(PrivacyError, match="no noise multiplier"):
        solve_noise_multiplier(0.05, 300, 1.0, 1e-5, [counted])


GRID = [
    (0.01, 0.6, 500),
    (0.01, 1.0, 3000),
    (0.02, 0.8, 1000),
    (0.05, 0.86, 300),
    (0.05, 1.0, 600),
    (0.05, 2.0, 1000),
    (0.1, 1.5, 200),
    (0.2, 3.0, 300),
    (0.5, 5.0, 100),
    (0.001, 0.7, 2000),
]


@pytest.mark.slow
@pytest.mark.parametrize(("q", "sigma", "number"), GRID)
def test_opacus_prv_agrees_and_renyi_is_above(q, sigma, number):
    from opacus.accountants import PRVAccountant

    event = steps(q, sigma, number)
    other = PRVAccountant()
    other.history = [(sigma, q, number)]
    ours = epsilon([event], 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert abs(ours - other.get_epsilon(delta=1e-5)) <= 0.02
    assert epsilon_rdp([event], 1e-5) >= ours
    assert epsilon_replace_one([event], 1e-5) >= ours


def test_an_empty_history_has_spent_nothing():
    assert epsilon([], 1e-5) == epsilon_replace_one([], 1e-5) == epsilon_rdp([], 1e-5) == 0


def test_epsilon_rises_with_every_entry_also_where_memory_would_end():
    history, before, replaced = [], 0.0, 0.0
    entries = [steps(0.05, 1.0, 20), Histogram(noise_multiplier=20.0), steps(0.02, 0.8, 1)]
    entries += [steps(1.0, 30.0, 2), steps(0.05, 1.0, 20), Histogram(noise_multiplier=1.0)]
    entries += [steps(1.0, 0.2, 10_000), steps(0.05, 1.0, 1), steps(0.05, 1.0, 20)]
    for entry in entries:
        history.append(entry)
        assert epsilon(history, 1e-5) > before
        assert epsilon_replace_one(history, 1e-5) >= max(replaced, epsilon(history, 1e-5))
        before, replaced = epsilon(history, 1e-5), epsilon_replace_one(history, 1e-5)
    assert 1e5 < before < math.inf


def test_neither_order_nor_grouping_of_entries_matters():
    one = [steps(0.05, 1.0, 10)] * 3 + [Histogram(noise_multiplier=9.0)] * 2
    other = [Histogram(noise_multiplier=9.0, releases=2), steps(0.05, 1.0, 30)]
    assert epsilon(one, 1e-5) == epsilon(other, 1e-5)


def test_more_noise_fewer_users_and_larger_delta_each_cost_less():
    base = epsilon([steps(0.05, 1.0, 100)], 1e-5)
    assert epsilon([steps(0.05, 1.1, 100)], 1e-5) < base
    assert epsilon([steps(0.04, 1.0, 100)], 1e-5) < base
    assert epsilon([steps(0.05, 1.0, 100)], 1e-4) < base


@pytest.mark.parametrize("delta", [0, -1e-5, 1, 1.5, math.nan, 1e-13, "1e-5", True])
@pytest.mark.parametrize("measure", [epsilon, epsilon_replace_one, epsilon_rdp])
def test_a_delta_out_of_range_is_refused(measure, delta):
    with pytest.raises(PrivacyError, match="delta"):
        measure([steps(0.05, 1.0, 10)], delta)


@pytest.mark.parametrize(
    ("q", "number", "target"), [(0.05, 600, 2.0), (0.02, 1000, 1.0), (1.0, 50, 3.0), (0.2, 5, 0.1)]
)
def test_the_solved_noise_is_the_smallest_that_keeps_the_budget(q, number, target):
    sigma = solve_noise_multiplier(q, number, target, 1e-5)
    assert sigma == round(sigma, 3)
    assert epsilon([steps(q, sigma, number)], 1e-5) <= target
    assert epsilon([steps(q, sigma - 0.001, number)], 1e-5) > target


def test_solving_inverts_epsilon():
    spent = epsilon([steps(0.05, 1.234, 200)], 1e-5)
    assert solve_noise_multiplier(0.05, 200, spent, 1e-5) == 1.234


def test_solving_takes_few_evaluations(monkeypatch):
    asked = []
    spent = accountant._spent
    monkeypatch.setattr(accountant, "_spent", lambda *key: asked.append(key) or spent(*key))
    solve_noise_multiplier(0.05, 600, 2.0, 1e-5)
    assert len(asked) <= 12


def test_a_budget_that_no_contract_can_keep_is_refused_and_a_loose_one_gets_the_least_noise():
    with pytest.raises(PrivacyError, match="no noise multiplier up to 1000"):
        solve_noise_multiplier(1.0, 10_000, 0.01, 1e-5)
    assert solve_noise_multiplier(0.001, 1, 50.0, 1e-5) == 0.2
    for bad in (0, -1, math.nan, math.inf):
        with pytest.raises(PrivacyError, match="epsilon"):
            solve_noise_multiplier(0.05, 10, bad, 1e-5)


@pytest.mark.slow
def test_thirty_rounds_of_a_simulation_are_accounted_in_seconds():
    accountant._spent.cache_clear()
    accountant._step_losses.cache_clear()
    begin = time.process_time()
    answers = [epsilon([steps(0.05, 0.86, 10)] * r, 1e-5) for r in range(1, 31)]
    assert answers == sorted(answers)
    assert answers[-1] == pytest.approx(7.9255, abs=0.001)
    assert time.process_time() - begin < 20  # 7 s measured; without the caches 25 s
    begin = time.process_time()
    for r in range(1, 31):
        epsilon([steps(0.05, 0.86, 10)] * r, 1e-5)
    assert time.process_time() - begin < 0.5
