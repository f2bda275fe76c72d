import json
import math

import pytest

from credit_client.balance import Balance, epsilon_of
from credit_client.ledger import Ledger
from credit_common.accountant import epsilon
from credit_common.errors import BudgetError
from credit_common.events import Histogram, SampledGaussian

DELTA = 1e-5
STEPS = SampledGaussian(sampling_rate=0.01, noise_multiplier=0.5, steps=20)
COUNTS = Histogram(noise_multiplier=1.185)


@pytest.fixture
def ledger(tmp_path):
    with Ledger.create(tmp_path / "own.ledger") as made:
        yield made


def charge(ledger, account, event, number):
    ledger.charge(
        account,
        event,
        contract_digest="c",
        message_id=f"m{number}",
        request_digest="r",
        reply=b"reply",
        budget_epsilon=50.0,
        delta=DELTA,
    )


def test_a_user_of_several_holders_may_be_on_another_side_of_the_split_at_each(ledger):
    ledger.bind_split("a public salt", 0.2, "user")
    charge(ledger, "train", STEPS, 1)
    charge(ledger, "holdout", COUNTS, 2)
    shared = ledger.balance.epsilon(DELTA, 2)
    assert shared == epsilon([STEPS, COUNTS], DELTA)
    assert shared > max(epsilon([STEPS] * 2, DELTA), epsilon([COUNTS] * 2, DELTA))
    assert ledger.balance.epsilon(DELTA) == max(epsilon([STEPS], DELTA), epsilon([COUNTS], DELTA))


@pytest.mark.parametrize(
    "split",
    [
        ("another salt", 0.2, "user"),
        ("a public salt", 0.3, "user"),
        ("a public salt", 0.2, "phone"),
    ],
)
def test_whatever_moves_users_across_the_split_makes_the_accounts_add(ledger, split):
    """Ids from another column are other people's places: the same salt does not help."""
    ledger.bind_split("a public salt", 0.2, "user")
    charge(ledger, "train", STEPS, 1)
    charge(ledger, "holdout", COUNTS, 2)
    assert not ledger.accounts_add
    assert ledger.balance.would_add(*split)
    ledger.bind_split(*split)
    assert ledger.accounts_add
    assert ledger.epsilon_overall(DELTA) == epsilon([STEPS, COUNTS], DELTA)


def test_of_salt_and_column_the_ledger_keeps_digests_alone(ledger, tmp_path):
    ledger.bind_split("a public salt", 0.2, "CUSTOMER_PHONE")
    assert b"CUSTOMER_PHONE" not in (tmp_path / "own.ledger").read_bytes()
    assert set(json.loads(ledger.entries()[0].event)) == {
        "holdout",
        "salt_sha256",
        "user_sha256",
    }


def test_after_a_run_without_privacy_epsilon_is_infinite_for_ever(ledger, tmp_path):
    ledger.bind_split("a public salt", 0.2, "user")
    charge(ledger, "train", STEPS, 1)
    ledger.note_open_run("d" * 64)
    ledger.note_open_run("d" * 64)
    assert [e.account for e in ledger.entries()] == ["split", "train", "open"]
    assert math.isinf(ledger.epsilon_overall(DELTA))
    assert math.isinf(ledger.epsilon_replace_one(DELTA))
    with pytest.raises(BudgetError, match="entry 3 is a run without privacy"):
        charge(ledger, "train", STEPS, 2)
    ledger.close()
    with Ledger.open(tmp_path / "own.ledger") as again:
        assert math.isinf(again.epsilon_overall(DELTA))


def test_a_balance_counts_as_the_ledger_does(ledger):
    ledger.bind_split("a public salt", 0.2, "user")
    for number in range(3):
        charge(ledger, "train", STEPS, number)
    anew = Balance(ledger.entries())
    assert anew.counter == ledger.balance.counter == 4
    assert anew.epsilon(DELTA) == ledger.epsilon_overall(DELTA)
    assert anew.hash_at(4) == ledger.head[1]
    assert epsilon_of([None], DELTA) == math.inf
    assert epsilon_of([], DELTA) == 0
