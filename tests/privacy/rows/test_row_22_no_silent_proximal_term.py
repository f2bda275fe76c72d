"""Row 22: a proximal term acts, or is not offered.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

import numpy as np
import pytest

from credit_common.contract import parse_contract
from credit_common.errors import ContractError


def check_a_proximal_term_acts_or_is_refused(step):
    try:
        plain, pulled = step(0.0), step(10.0)
    except ContractError:
        return
    assert np.abs(plain - pulled).max() > 1e-3, "no effect"


def test_row_22_no_proximal_term_is_offered(federation_file):
    def step(mu):
        return parse_contract(federation_file(training={"proximal": mu}))

    check_a_proximal_term_acts_or_is_refused(step)
    with pytest.raises(ContractError, match="unknown key 'proximal'"):
        step(0.1)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_row_22_catches_a_proximal_term_in_the_loss(stock_proximal):
    with pytest.raises(AssertionError, match="no effect"):
        check_a_proximal_term_acts_or_is_refused(stock_proximal)
