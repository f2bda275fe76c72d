import contextlib
import math
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest

from credit_client.chain import GENESIS
from credit_client.ledger import Ledger
from credit_common.accountant import epsilon, epsilon_replace_one
from credit_common.errors import BudgetError, PrivacyError
from credit_common.events import Histogram, SampledGaussian, event_from_json

DELTA = 1e-5
ROUND = SampledGaussian(sampling_rate=0.05, noise_multiplier=2.0, steps=10)
COUNTS = Histogram(noise_multiplier=20.0)


def charge(ledger, number, event=ROUND, account="train", budget=50.0, **changes):
    request = {
        "contract_digest": "contract-a",
        "message_id": f"m{number}",
        "request_digest": f"r{number}",
        "reply": b"reply %d" % number,
        "budget_epsilon": budget,
        "delta": DELTA,
    }
    return ledger.charge(account, event, **(request | changes))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path):
    with Ledger.create(path) as made:
        made.bind_split("a salt of the contract", 0.2)
        yield made


def edit(path, *statements):
    """What somebody with the file and an SQLite shell can do."""
    with sqlite3.connect(path, isolation_level=None) as shell:
        shell.executescript("DROP TRIGGER entries_stay; DROP TRIGGER entries_fixed;")
        for statement in statements:
            shell.execute(statement)
    shell.close()


def test_a_ledger_is_a_single_file_that_only_its_user_can_read(path):
    with Ledger.create(path) as ledger:
        charge(ledger, 1)
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]
    path.chmod(0o644)
    Ledger.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_names_with_special_characters_work(tmp_path):
    path = tmp_path / "a b?mode=ro#%41.db"
    with Ledger.create(path) as ledger:
        charge(ledger, 1)
    assert path.is_file()
    with Ledger.open(path) as ledger:
        assert ledger.head[0] == 1


def test_a_charge_survives_and_spends_what_the_accountant_says(ledger, path):
    charge(ledger, 1)
    charge(ledger, 2)
    charge(ledger, 3, COUNTS, "holdout")
    ledger.close()
    with Ledger.open(path) as again:
        assert again.epsilon("train", DELTA) == epsilon([ROUND, ROUND], DELTA)
        assert again.epsilon("holdout", DELTA) == epsilon([COUNTS], DELTA)
        assert again.epsilon_overall(DELTA) == epsilon([ROUND, ROUND], DELTA)
        assert again.lookup("m2", "r2") == b"reply 2"


def test_a_second_engine_replays_the_entries_to_the_same_epsilon(ledger):
    import json

    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    charge(ledger, 1)
    charge(ledger, 2)
    accountant = PLDAccountant()
    for entry in ledger.entries():
        if entry.account == "train":
            event = event_from_json(json.loads(entry.event))
            one = dp_accounting.GaussianDpEvent(event.noise_multiplier)
            accountant.compose(
                dp_accounting.PoissonSampledDpEvent(event.sampling_rate, one), event.steps
            )
    assert ledger.epsilon("train", DELTA) == pytest.approx(accountant.get_epsilon(DELTA), abs=1e-3)


def test_an_answered_message_gets_its_cached_bytes_and_never_a_second_charge(ledger):
    assert ledger.lookup("m1", "r1") is None
    charge(ledger, 1)
    before = ledger.epsilon("train", DELTA), ledger.head
    assert ledger.lookup("m1", "r1") == b"reply 1"
    with pytest.raises(PrivacyError, match="charged already"):
        charge(ledger, 1, reply=b"fresh noise")
    assert ledger.lookup("m1", "r1") == b"reply 1"
    assert (ledger.epsilon("train", DELTA), ledger.head) == before


def test_the_same_id_for_another_request_is_refused(ledger):
    charge(ledger, 1)
    with pytest.raises(PrivacyError, match="another request"):
        ledger.lookup("m1", "another digest")


def test_a_reply_that_is_gone_stays_charged_and_answered(ledger, path):
    charge(ledger, 1)
    spent = ledger.epsilon("train", DELTA)
    ledger.close()
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.execute("DELETE FROM replies WHERE message_id = 'm1'")
    with Ledger.open(path) as again:
        with pytest.raises(PrivacyError, match="already answered"):
            again.lookup("m1", "r1")
        with pytest.raises(PrivacyError, match="charged already"):
            charge(again, 1)
        assert again.epsilon("train", DELTA) == spent > 0


def test_the_budget_ends_with_a_clear_error_and_no_entry(ledger):
    budget = epsilon([ROUND] * 3, DELTA)
    for number in range(3):
        ledger.check("train", ROUND, budget, DELTA)
        charge(ledger, number, budget=budget)
    head = ledger.head
    for refused in (
        lambda: ledger.check("train", ROUND, budget, DELTA),
        lambda: charge(ledger, 9, budget=budget),
    ):
        with pytest.raises(BudgetError) as caught:
            refused()
        for number in (epsilon([ROUND] * 3, DELTA), epsilon([ROUND] * 4, DELTA)):
            assert f"{number:.4f}" in str(caught.value)
        assert f"{budget:g}" in str(caught.value)
    assert ledger.head == head
    assert ledger.lookup("m9", "r9") is None
    charge(ledger, 10, COUNTS, "holdout", budget=budget)  # other users, still within theirs


@pytest.mark.parametrize("budget", [None, math.inf, math.nan, -math.inf])
def test_a_durable_ledger_needs_a_finite_budget(ledger, budget):
    for refused in (ledger.check, lambda *_: charge(ledger, 1, budget=budget)):
        with pytest.raises(PrivacyError):
            refused("train", ROUND, budget, DELTA)
    assert ledger.head[0] == 1


@pytest.mark.parametrize("budget", [None, 8.0])
def test_a_durable_ledger_refuses_a_release_without_noise(ledger, budget):
    with pytest.raises(PrivacyError, match="needs noise"):
        charge(ledger, 1, None, budget=budget)
    assert ledger.head[0] == 1


def test_an_unknown_account_or_an_empty_message_id_is_refused(ledger):
    with pytest.raises(PrivacyError, match="account"):
        charge(ledger, 1, account="split")
    with pytest.raises(PrivacyError, match="account"):
        ledger.epsilon("other", DELTA)
    with pytest.raises(PrivacyError, match="message id"):
        charge(ledger, 1, message_id="")


def test_in_memory_a_run_without_privacy_has_infinite_epsilon():
    with Ledger.in_memory() as ledger:
        assert ledger.epsilon("train", DELTA) == 0
        charge(ledger, 1, None, budget=None)
        assert ledger.lookup("m1", "r1") == b"reply 1"
        assert ledger.epsilon("train", DELTA) == ledger.epsilon_overall(DELTA) == math.inf
        assert ledger.epsilon_replace_one(DELTA) == math.inf
        with pytest.raises(BudgetError, match="inf"):
            charge(ledger, 2, ROUND, budget=8.0)
        with pytest.raises(PrivacyError):
            charge(ledger, 3, None, budget=8.0)


def test_in_memory_a_private_run_is_accounted_as_on_disk():
    with Ledger.in_memory() as ledger:
        charge(ledger, 1)
        assert ledger.epsilon("train", DELTA) == epsilon([ROUND], DELTA)
        with pytest.raises(BudgetError):
            charge(ledger, 2, budget=epsilon([ROUND], DELTA))


def test_a_new_contract_continues_the_old_spend(ledger, path):
    charge(ledger, 1)
    ledger.close()
    with Ledger.open(path) as again:
        again.bind_split("a salt of the contract", 0.2)
        charge(again, 2, contract_digest="contract-b")
        assert again.epsilon("train", DELTA) == epsilon([ROUND, ROUND], DELTA)
        digests = [e.contract_digest for e in again.entries() if e.account == "train"]
        assert digests == ["contract-a", "contract-b"]
        assert not again.accounts_add


@pytest.mark.parametrize(
    ("salt", "fraction"), [("another salt", 0.2), ("a salt of the contract", 0.3)]
)
def test_a_changed_split_makes_the_accounts_add_up_for_ever(ledger, path, salt, fraction):
    charge(ledger, 1)
    charge(ledger, 2, COUNTS, "holdout")
    apart = ledger.epsilon_overall(DELTA)
    both = epsilon([ROUND, COUNTS], DELTA)
    assert apart == max(epsilon([ROUND], DELTA), epsilon([COUNTS], DELTA)) < both
    ledger.bind_split(salt, fraction)
    assert ledger.epsilon_overall(DELTA) == both
    ledger.bind_split("a salt of the contract", 0.2)  # going back does not part them again
    ledger.close()
    with Ledger.open(path) as again:
        assert again.accounts_add
        assert again.epsilon_overall(DELTA) == both
        budget = epsilon([ROUND, COUNTS, COUNTS], DELTA)
        with pytest.raises(BudgetError):
            again.check("holdout", COUNTS, budget - 1e-6, DELTA)
        assert again.check("holdout", COUNTS, budget, DELTA) == budget
        again.verify()


def test_the_same_split_again_adds_no_entry(ledger):
    head = ledger.head
    ledger.bind_split("a salt of the contract", 0.2)
    assert ledger.head == head


def test_users_charged_before_any_split_was_known_may_be_in_both_accounts(path):
    with Ledger.create(path) as ledger:
        charge(ledger, 1)
        ledger.bind_split("a salt of the contract", 0.2)
        assert ledger.accounts_add
        charge(ledger, 2, COUNTS, "holdout")
        assert ledger.epsilon_overall(DELTA) == epsilon([ROUND, COUNTS], DELTA)


def test_the_salt_itself_is_not_kept(ledger, path):
    ledger.close()
    assert b"a salt of the contract" not in path.read_bytes()


def test_replace_one_covers_a_swap_across_the_split(ledger):
    loud = Histogram(noise_multiplier=1.0)
    charge(ledger, 1)
    charge(ledger, 2, loud, "holdout")
    parts = [[ROUND], [loud]]
    expected = max(epsilon([ROUND, loud], DELTA), *(epsilon_replace_one(p, DELTA) for p in parts))
    assert ledger.epsilon_replace_one(DELTA) == expected > ledger.epsilon_overall(DELTA)
    ledger.bind_split("another salt", 0.2)
    assert ledger.epsilon_replace_one(DELTA) == epsilon_replace_one([ROUND, loud], DELTA)


LESS = """UPDATE entries SET event = replace(event, '"steps":10', '"steps":1') WHERE sequence = 3"""


@pytest.mark.parametrize(
    ("statement", "entry"),
    [
        (LESS, 3),
        ("DELETE FROM entries WHERE sequence = 3", 3),
        ("UPDATE entries SET account = 'holdout' WHERE sequence = 2", 2),
        ("UPDATE entries SET event = (SELECT event FROM entries WHERE sequence = 1)", 2),
        ("UPDATE entries SET time = '2020-01-01T00:00:00+00:00' WHERE sequence = 4", 4),
        ("UPDATE entries SET hash = 'x' WHERE sequence = 4", 4),
        ("UPDATE entries SET message_id = 'mine' WHERE sequence = 2", 2),
        ("UPDATE entries SET sequence = 9 WHERE sequence = 4", 4),
        ("DELETE FROM entries WHERE account = 'split'", 1),
    ],
)
def test_a_tampered_entry_is_found_and_named(ledger, path, statement, entry):
    for number in (1, 2, 3):
        charge(ledger, number)
    ledger.close()
    edit(path, statement)
    with pytest.raises(PrivacyError, match=f"at entry {entry}:"):
        Ledger.open(path)
    with pytest.raises(PrivacyError, match=f"at entry {entry}:"):  # and the lock was let go
        Ledger.open(path)


def test_a_tail_cut_off_is_seen_only_by_who_remembers_the_head(ledger, path):
    for number in (1, 2, 3):
        charge(ledger, number)
    head = ledger.head
    ledger.close()
    edit(path, "DELETE FROM entries WHERE sequence = 4")
    with Ledger.open(path) as again:
        again.verify()
        assert again.head != head


def test_an_exchanged_reply_is_found(ledger, path):
    charge(ledger, 1)
    ledger.close()
    edit(path, "UPDATE replies SET reply = x'00'")
    with Ledger.open(path) as again, pytest.raises(PrivacyError, match="reply"):
        again.lookup("m1", "r1")


@pytest.mark.parametrize("statement", ["DELETE FROM entries", "UPDATE entries SET event = 'null'"])
def test_entries_cannot_be_changed_by_a_slip(ledger, path, statement):
    charge(ledger, 1)
    ledger.close()
    with sqlite3.connect(path) as shell, pytest.raises(sqlite3.IntegrityError, match="never"):
        shell.execute(statement)
    shell.close()
    Ledger.open(path).close()


def test_each_entry_carries_the_hash_of_the_one_before(ledger):
    charge(ledger, 1)
    charge(ledger, 2)
    previous = GENESIS
    for number, entry in enumerate(ledger.entries(), start=1):
        assert (entry.sequence, entry.previous) == (number, previous)
        previous = entry.hash
    assert ledger.head == (3, previous)


OPEN = """
import sys
from credit_client.ledger import Ledger
from credit_common.errors import PrivacyError
try:
    Ledger.open(sys.argv[1])
    print("opened")
except PrivacyError as error:
    print(error)
"""


def test_a_second_opener_is_refused_in_this_and_in_another_process(ledger, path):
    with pytest.raises(PrivacyError, match="in use"):
        Ledger.open(path)
    command = [sys.executable, "-c", OPEN, str(path)]
    assert "in use by another client" in subprocess.check_output(command, text=True)
    charge(ledger, 1)
    ledger.close()
    assert subprocess.check_output(command, text=True) == "opened\n"


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_cannot_use_the_parents_ledger(ledger):
    child = os.fork()
    if child == 0:
        try:
            charge(ledger, 1)
        except PrivacyError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    charge(ledger, 1)


def test_a_closed_ledger_says_so(ledger):
    ledger.close()
    ledger.close()
    with pytest.raises(PrivacyError, match="closed"):
        charge(ledger, 1)


def test_after_a_failed_write_the_ledger_is_closed_and_nothing_is_spent(ledger, path, monkeypatch):
    charge(ledger, 1)
    ledger._execute("PRAGMA max_page_count = 1")  # SQLite takes the smallest possible: full
    with pytest.raises(PrivacyError, match="full"):
        charge(ledger, 2, reply=bytes(1_000_000))
    with pytest.raises(PrivacyError, match="closed"):
        charge(ledger, 3)
    with Ledger.open(path) as again:
        assert again.epsilon("train", DELTA) == epsilon([ROUND], DELTA)
        assert again.lookup("m2", "r2") is None


def test_threads_charge_one_after_the_other(ledger):
    won, refused = [], []

    def same_message():
        try:
            won.append(charge(ledger, 1))
        except PrivacyError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=same_message) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert all("charged already" in text for text in refused)
    assert len(refused) == 7
    ledger.verify()


CHARGING = """
import itertools, sys
from credit_client import ledger as module
from credit_client.ledger import Ledger
from credit_common.events import Histogram
module.epsilon = lambda events, delta: 0.0  # not under test here, and seconds to load
event = Histogram(noise_multiplier=1000.0)
with Ledger.open(sys.argv[1]) as ledger:
    first = ledger.head[0]
    print("ready", flush=True)
    for n in itertools.count(first):
        ledger.charge(
            "holdout", event, contract_digest="c", message_id=f"k{n}", request_digest=f"q{n}",
            reply=f"reply {n}".encode() * 2000, budget_epsilon=50.0, delta=1e-5,
        )
        print(n, flush=True)
"""


def test_a_killed_client_never_loses_a_charge_that_it_has_answered(path):
    Ledger.create(path).close()
    wait = random.Random(7)
    entries, spent, interrupted = 0, 0.0, 0
    for _ in range(10):
        child = subprocess.Popen(
            [sys.executable, "-c", CHARGING, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.stdout.readline()
        time.sleep(wait.uniform(0, 0.15))
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        child.stdout.close()
        printed = int(rest[-1]) if rest else entries
        interrupted += path.with_name("ledger.db-journal").exists()
        with Ledger.open(path) as ledger:
            ledger.verify()
            number, _ = ledger.head
            assert number >= printed + 1 > entries
            after = ledger.epsilon("holdout", DELTA)
            assert after >= spent
            for n in range(entries, number):  # every charge has its reply, the last one too
                assert ledger.lookup(f"k{n}", f"q{n}") == f"reply {n}".encode() * 2000
            assert ledger.lookup(f"k{number}", f"q{number}") is None
            entries, spent = number, after
    assert interrupted == 10
