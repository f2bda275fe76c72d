import dataclasses
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


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("answer_seconds", 0.5, "between 1 and 86400"),
        ("answer_seconds", 86_401.0, "between 1 and 86400"),
        ("grace_seconds", -1.0, "0 to answer_seconds"),
        ("grace_seconds", 3601.0, "0 to answer_seconds"),
    ],
)
def test_waits_have_bounds(contract: Contract, key: str, value: float, bound: str) -> None:
    with pytest.raises(ContractError, match=rf"federation\.{key} = {value}: must be {bound}"):
        dataclasses.replace(contract.federation, **{key: value})


@pytest.mark.parametrize("name", ["Small", "a b", "", "x" * 64, "é", "a:b"])
def test_names_that_stand_in_certificates_are_plain(contract: Contract, name: str) -> None:
    with pytest.raises(ContractError, match="lower-case letters, digits and hyphens"):
        dataclasses.replace(contract.privacy, size_classes=((name, 10),))
    with pytest.raises(ContractError, match="lower-case letters, digits and hyphens"):
        dataclasses.replace(contract.federation, name=name)
