import numpy as np
import pytest

from credit_simulations.simulated.merchants import draw_merchants
from credit_simulations.simulated.shoppers import (
    PARTS,
    draw_defaults,
    draw_shoppers,
    draw_visitors,
    logit_parts,
    true_pd,
)

USERS = 10_000


@pytest.fixture(scope="module")
def shops():
    return draw_merchants(3, 8)


@pytest.fixture(scope="module")
def people(shops):
    return draw_shoppers(3, USERS, shops)


def test_each_part_moves_the_pd_and_all_of_them_are_named(people):
    whole = true_pd(people)
    assert set(logit_parts(people)) == set(PARTS)
    for part in PARTS:
        without = true_pd(people, without=[part])
        assert np.mean(np.abs(whole - without)) > 0.01, part
    assert np.ptp(true_pd(people, without=PARTS)) == 0


def test_parts_have_mean_zero_but_for_chance(people):
    for name, part in logit_parts(people).items():
        # Circles and merchants share traits, so there are fewer than USERS independent draws.
        assert abs(part.mean()) < 6 * part.std() / np.sqrt(USERS / 10), name


def test_effects_are_not_linear_and_interact(people):
    parts = logit_parts(people)
    for name, traits in {
        "numbers": (people.planning, people.means),
        "events": (people.strain,),
        "text": (people.worry, people.stretch),
    }.items():
        table = np.column_stack([np.ones(USERS), *traits])
        fitted = table @ np.linalg.lstsq(table, parts[name], rcond=None)[0]
        assert np.var(parts[name] - fitted) > 0.005, name


def test_words_and_events_come_from_traits_that_nothing_else_shows(people):
    shown = [people.planning, people.means, people.trouble, people.age, people.offset]
    for hidden in (people.worry, people.stretch, people.strain):
        for other in shown:  # 5.1 standard errors: below 1e-6 for each of the fifteen
            assert abs(np.corrcoef(hidden, other)[0, 1]) < 5.1 / np.sqrt(USERS)


def test_defaults_follow_the_pd(people):
    pd_ = true_pd(people)
    labels = draw_defaults(3, pd_)
    assert 0.10 < pd_.mean() < 0.14
    bound = np.sqrt(np.log(2 / 1e-6) / (2 * USERS))  # Hoeffding
    assert abs(labels.mean() - pd_.mean()) < bound
    high = pd_ > np.quantile(pd_, 0.9)
    bound = np.sqrt(np.log(2 / 1e-6) / (2 * high.sum()))
    assert abs(labels[high].mean() - pd_[high].mean()) < bound


def test_everybody_shops_at_home_and_fifteen_in_a_hundred_elsewhere_too(shops, people):
    person, shop = draw_visitors(3, people, shops)
    pairs = list(zip(person.tolist(), shop.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert set(zip(range(USERS), people.home.tolist(), strict=True)) <= set(pairs)
    assert np.bincount(np.bincount(person)).tolist() == [0, 8500, 1000, 500]


@pytest.mark.parametrize("merchants", [1, 2])
def test_nobody_shops_at_more_merchants_than_there_are(merchants):
    few = draw_merchants(3, merchants)
    person, _ = draw_visitors(3, draw_shoppers(3, 200, few), few)
    assert np.bincount(person).max() == merchants


def test_age_goes_with_risk_though_it_is_no_part_of_it(people):
    pd_ = true_pd(people)
    assert pd_[people.age < 30].mean() > 1.2 * pd_[people.age > 55].mean()
