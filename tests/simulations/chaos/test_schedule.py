"""The weather of a run: from its seed and number alone, and never none of a kind."""

from collections import Counter

import pytest

from credit_common.errors import ContractError
from credit_simulations.chaos.schedule import LONGEST_PAUSE, MOST_BYTES, schedule


def test_a_run_has_its_own_schedule_which_its_seed_repeats() -> None:
    runs = [schedule(3, number, rounds=10, holders=6) for number in range(1, 6)]
    assert runs == [schedule(3, number, rounds=10, holders=6) for number in range(1, 6)]
    assert len(set(runs)) == 5
    assert schedule(4, 1, rounds=10, holders=6) not in runs


def test_every_kind_of_fault_strikes_every_run_before_its_last_round() -> None:
    hit: set[int] = set()
    for number in range(1, 200):
        faults = schedule(0, number, rounds=5, holders=4)
        kinds = Counter(fault.kind for fault in faults)
        assert set(kinds) == {"kill-server", "kill-holder", "drop", "delay", "truncate"}
        assert 1 <= kinds["kill-server"] <= 2 <= kinds["kill-holder"] <= 3
        for fault in faults:
            assert 0 <= fault.after <= 3
            assert 0 <= fault.pause <= LONGEST_PAUSE
            assert (fault.holder == -1) == (fault.kind == "kill-server")
            assert (fault.amount > 0) == (fault.kind in ("delay", "truncate"))
            assert fault.amount <= MOST_BYTES
            hit.add(fault.holder)
        assert [f.after for f in faults] == sorted(f.after for f in faults)
    assert hit == {-1, 0, 1, 2, 3}


@pytest.mark.parametrize(("rounds", "holders"), [(1, 6), (10, 0)])
def test_a_schedule_needs_rounds_and_holders(rounds: int, holders: int) -> None:
    with pytest.raises(ContractError, match="at least"):
        schedule(0, 1, rounds=rounds, holders=holders)
