import doctest

import pytest

from credit_simulations.sources import completejourney, gmsc, reviews, source, taiwan


@pytest.mark.parametrize("module", [completejourney, gmsc, reviews, source, taiwan])
def test_examples_in_the_docstrings_hold(module):
    done = doctest.testmod(module)
    assert done.failed == 0
    assert done.attempted >= 1
