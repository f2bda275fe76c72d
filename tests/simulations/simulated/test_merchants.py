import numpy as np

from credit_simulations.simulated.completejourney import DEPARTMENT_SHARES
from credit_simulations.simulated.merchants import STYLES, draw_merchants


def test_the_same_seed_draws_the_same_merchants_and_another_others():
    once, again, other = (draw_merchants(seed, 4) for seed in (5, 5, 6))
    assert [m.weight for m in once] == [m.weight for m in again]
    assert [m.weight for m in once] != [m.weight for m in other]


def test_every_name_says_that_it_is_simulated():
    names = [m.name for m in draw_merchants(0, 120)]
    assert names[0] == "simulated-shop-001"
    assert len(set(names)) == 120
    assert all(name.startswith("simulated-") for name in names)


def test_department_mixes_scatter_around_the_real_shares():
    mixes = np.array([m.mix for m in draw_merchants(1, 3000)])
    assert np.allclose(mixes.sum(axis=1), 1)
    shares = np.array(DEPARTMENT_SHARES) / sum(DEPARTMENT_SHARES)
    error = mixes.std(axis=0) / np.sqrt(len(mixes))
    assert (np.abs(mixes.mean(axis=0) - shares) < 6 * error).all()
    assert mixes[:, 0].std() > 0.1  # of groceries: unlike shops


def test_merchants_differ_in_size_risk_price_and_style():
    shops = draw_merchants(2, 10)
    weights = [m.weight for m in shops]
    assert np.isclose(sum(weights), 1)
    assert max(weights) > 2 * min(weights)
    assert np.ptp([m.risk for m in shops]) > 0.3
    assert np.isclose(sum(m.weight * m.risk for m in shops), 0)
    assert {m.style for m in shops} == set(STYLES)
