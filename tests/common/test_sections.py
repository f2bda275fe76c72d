import math

import pytest

from credit_common.contract import Contract, parse_contract
from credit_common.errors import ContractError


def test_dropout_is_refused_with_the_reason(contract_text: str) -> None:
    with pytest.raises(ContractError, match=r"model\.dropout = 0\.1: dropout is refused: it makes"):
        parse_contract(contract_text.replace("rank = 4", "dropout = 0.1"))


def test_an_unknown_size_class_is_refused_with_the_known_ones(contract: Contract) -> None:
    assert contract.privacy.class_users("large") == 3000
    with pytest.raises(ContractError, match=r"'huge'.*small, large"):
        contract.privacy.class_users("huge")


@pytest.mark.parametrize("rounds", [1, 4, 5, 12])
def test_the_last_round_is_always_evaluated(contract: Contract, rounds: int) -> None:
    due = [r for r in range(1, rounds + 1) if contract.evaluation.due(r, rounds)]
    assert due[-1] == rounds
    assert len(due) == math.ceil(rounds / contract.evaluation.every)
