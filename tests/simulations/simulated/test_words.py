import numpy as np
import pytest

from credit_common.masking import mask_identifiers
from credit_simulations.simulated.completejourney import DEPARTMENTS
from credit_simulations.simulated.merchants import STYLES
from credit_simulations.simulated.words import (
    DEPARTMENT_NAMES,
    MONEY,
    PRODUCTS,
    SILENT,
    draw_reviews,
    draw_titles,
)

ROWS = 5000
LEVEL_OF = {phrase.lower(): level for level, pool in enumerate(MONEY) for phrase in pool}


def trait(seed=0):
    return np.random.default_rng(seed).standard_normal(ROWS)


def heard(review):
    """Mean level of worry of the sentences about money in a review; NaN where there is none."""
    said = review.lower()
    levels = [
        level
        for phrase, level in LEVEL_OF.items()
        if phrase.removeprefix("i ").removeprefix("we ") in said
    ]
    return float(np.mean(levels)) if levels else float("nan")


def titles(stretch):
    department = np.random.default_rng(1).integers(0, 10, ROWS)
    mix = np.full((ROWS, 10), 0.1)
    return draw_titles(np.random.default_rng(2), stretch, department, mix), department


def test_departments_are_those_that_were_measured():
    assert tuple(DEPARTMENTS) == DEPARTMENT_NAMES


def test_every_phrase_and_product_stands_in_one_pool():
    phrases = [phrase for pool in MONEY for phrase in pool]
    products = [title for pools in PRODUCTS.values() for pool in pools for title in pool]
    assert len(set(phrases)) == len(phrases)
    assert len(set(products)) == len(products)


@pytest.mark.parametrize("style", STYLES)
def test_reviews_tell_of_worry_in_every_style(style):
    worry = trait()
    reviews = draw_reviews(np.random.default_rng(3), worry, [style] * ROWS)
    levels = np.array([heard(review) for review in reviews])
    said = np.array([review != "" for review in reviews])
    assert abs(said.mean() - (1 - SILENT)) < 0.03
    assert not np.isnan(levels[said]).any()
    assert np.corrcoef(levels[said], worry[said])[0, 1] > 0.8
    shuffled = np.random.default_rng(4).permutation(worry)
    assert abs(np.corrcoef(levels[said], shuffled[said])[0, 1]) < 0.08


def test_titles_tell_of_stretch_and_not_by_their_department():
    stretch = trait()
    found, department = titles(stretch)
    tilted = {title for _, pool in PRODUCTS.values() for title in pool}
    share = np.array([np.mean([t in tilted for t in text.split(", ")]) for text in found])
    assert np.corrcoef(share, stretch)[0, 1] > 0.5
    known = {title for pools in PRODUCTS.values() for pool in pools for title in pool}
    assert {title for text in found for title in text.split(", ")} <= known
    own = [
        bool(set(text.split(", ")) & {t for p in PRODUCTS[DEPARTMENT_NAMES[d]] for t in p})
        for text, d in zip(found, department.tolist(), strict=True)
    ]
    assert np.mean(own) > 0.95


def test_the_same_stream_writes_the_same_words_and_a_worse_trait_other_ones():
    once = draw_reviews(np.random.default_rng(3), trait(), ["plain"] * ROWS)
    assert once == draw_reviews(np.random.default_rng(3), trait(), ["plain"] * ROWS)
    assert once != draw_reviews(np.random.default_rng(3), trait() + 1, ["plain"] * ROWS)


def test_styles_read_differently():
    by_style = {
        style: draw_reviews(np.random.default_rng(3), trait(), [style] * ROWS)[:200]
        for style in STYLES
    }
    assert all(text == text.lower() for text in by_style["lower"])
    assert any("!" in text for text in by_style["chatty"])
    assert any(text.startswith("Dear team") for text in by_style["formal"])
    assert len({tuple(texts) for texts in by_style.values()}) == len(STYLES)


def test_words_fit_their_fields_and_are_not_taken_for_identifiers():
    styles = [STYLES[i % len(STYLES)] for i in range(ROWS)]
    reviews = draw_reviews(np.random.default_rng(5), trait(), styles)
    found, _ = titles(trait())
    assert max(map(len, reviews)) <= 240
    assert max(map(len, found)) <= 120
    assert all(mask_identifiers(text) == text for text in reviews[:300] + found[:300])
