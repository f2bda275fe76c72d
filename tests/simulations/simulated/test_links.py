import numpy as np
import pytest

from credit_simulations.simulated.links import Account, draw_late, draw_links, linked_customers
from credit_simulations.simulated.merchants import draw_merchants
from credit_simulations.simulated.shoppers import draw_shoppers, draw_visitors, logit_parts, true_pd

NEVER = np.iinfo(np.int64).max


def accounts(person, shop, opened, applied):
    return Account(
        person=np.array(person), shop=np.array(shop), opened=np.array(opened),
        applied=np.array(applied),
    )  # fmt: skip


@pytest.fixture(scope="module")
def people():
    return draw_shoppers(2, 6000, draw_merchants(2, 6))


def test_each_link_stands_once_and_nobody_is_linked_to_themselves(people):
    links = draw_links(2, people)
    assert (links[:, 0] < links[:, 1]).all()
    assert len(np.unique(links, axis=0)) == len(links)
    assert links.max() < 6000


def test_linked_people_are_alike_in_risk_and_strangers_are_not(people):
    links = draw_links(2, people)
    logit = np.log(true_pd(people) / (1 - true_pd(people)))
    alike = np.corrcoef(logit[links[:, 0]], logit[links[:, 1]])[0, 1]
    strangers = np.corrcoef(logit[links[:, 0]], np.roll(logit[links[:, 1]], 997))[0, 1]
    assert alike > 0.15
    assert abs(strangers) < 0.05


def test_links_are_made_within_circles_and_across(people):
    links = draw_links(2, people)
    within = (people.circle[links[:, 0]] == people.circle[links[:, 1]]).mean()
    assert 0.8 < within < 0.98


def test_counts_by_hand():
    # Persons 0 to 3 are all linked to person 0; person 3 shops elsewhere, person 2 opened later.
    rows = accounts([0, 1, 2, 3], [5, 5, 5, 6], [0, 0, 60, 0], [50, 50, 90, 50])
    links = np.array([[0, 1], [0, 2], [0, 3]])
    number, share = linked_customers(links, rows, np.array([NEVER, 40, 10, 10]))
    assert number.tolist() == [1, 1, 1, 0]
    assert share[:3].tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(share[3])
    _, later = linked_customers(links, rows, np.array([NEVER, 50, 10, 10]))
    assert later[0] == 0.0  # paid late only after the application


def test_a_merchant_sees_nothing_of_another_merchants_accounts(people):
    shops = draw_merchants(2, 6)
    person, shop = draw_visitors(2, people, shops)
    random = np.random.default_rng(0)
    applied = random.integers(10**6, 2 * 10**6, len(person))
    everywhere = accounts(person, shop, applied - random.integers(1, 10**6, len(person)), applied)
    links = draw_links(2, people)
    _, late_at = draw_late(2, people, everywhere)
    number, share = linked_customers(links, everywhere, late_at)
    here = np.flatnonzero(shop == 3)
    alone = accounts(person[here], shop[here], everywhere.opened[here], applied[here])
    again = linked_customers(links, alone, late_at[here])
    assert (again[0] == number[here]).all()
    assert np.array_equal(again[1], share[here], equal_nan=True)
    # Seen together, as one merchant, there would be more: the check can fail.
    merged = accounts(person, 0 * shop, everywhere.opened, applied)
    assert linked_customers(links, merged, late_at)[0].sum() > number.sum()


def test_late_payments_follow_numbers_and_links_but_not_words_or_events(people):
    person = np.arange(6000)
    rows = accounts(person, 0 * person, 0 * person, 0 * person + 10**6)
    number, first = draw_late(2, people, rows)
    assert ((first < 10**6) == (number > 0)).all()
    assert first.min() >= 10**6 - 182 * 1440
    parts = logit_parts(people)
    found = {name: np.corrcoef(number > 0, part)[0, 1] for name, part in parts.items()}
    assert min(found["numbers"], found["links"]) > 0.1
    assert max(abs(found["text"]), abs(found["events"])) < 5.1 / np.sqrt(6000)
