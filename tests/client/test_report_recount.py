"""The second reader's arithmetic, held against exact formulas and against the first reader."""

import json
import math
import random
from dataclasses import asdict
from statistics import NormalDist

import pytest

from credit_client.balance import Balance, split_text
from credit_client.chain import GENESIS, Entry, canonical
from credit_client.report.recount import chain_problems, epsilon_of, recount
from credit_common.errors import PrivacyError
from credit_common.events import Histogram, SampledGaussian, event_to_json

DELTA = 1e-5


def exact(mu, delta=DELTA):
    """ε of the Gaussian mechanism with shift μ in standard deviations (Balle and Wang 2018)."""
    cdf = NormalDist().cdf

    def tail(epsilon):
        return cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)

    low, high = 0.0, 200.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) > delta else (low, middle)
    return high


def histograms(sigma, releases):
    return [{"kind": "histogram", "noise_multiplier": sigma, "releases": releases}]


def steps(q, sigma, n):
    kind = "sampled_gaussian"
    return [{"kind": kind, "noise_multiplier": sigma, "sampling_rate": q, "steps": n}]


@pytest.mark.parametrize(("sigma", "n"), [(2.0, 1), (20.0, 30), (1.1, 3), (100.0, 7)])
@pytest.mark.parametrize("replace", [False, True])
def test_counts_have_the_exact_epsilon_of_a_gaussian(sigma, n, replace):
    """A changed record leaves one cell and enters another: √2 as far as one added or removed."""
    mu = math.sqrt(n * (2 if replace else 1)) / sigma
    assert exact(mu) - 1e-6 <= epsilon_of(histograms(sigma, n), DELTA, replace) <= exact(mu) + 0.005


@pytest.mark.parametrize("replace", [False, True])
def test_steps_that_all_users_take_part_in_are_plain_gaussians(replace):
    """A changed record may turn a sum from C one way to C the other way: twice as far."""
    mu = math.sqrt(5) / 8 * (2 if replace else 1)
    assert exact(mu) - 1e-6 <= epsilon_of(steps(1, 8.0, 5), DELTA, replace) <= exact(mu) + 0.005


def test_both_kinds_of_gaussians_compose_by_their_squares():
    mu = math.sqrt(5 * (2 / 8) ** 2 + 3 * 2 / 4**2)
    found = epsilon_of(steps(1, 8.0, 5) + histograms(4.0, 3), DELTA, True)
    assert exact(mu) - 1e-6 <= found <= exact(mu) + 0.005


def test_the_anchor_of_the_specification():
    events = steps(0.05, 1.0, 20) * 30
    assert epsilon_of(events, DELTA) == pytest.approx(8.29, abs=0.01)
    assert epsilon_of(events, DELTA, True) == pytest.approx(13.58, abs=0.02)


def test_nothing_spent_is_zero():
    assert epsilon_of([], DELTA) == epsilon_of([], DELTA, True) == 0.0


def chained(contents):
    """Entries of (account, event) in a whole chain."""
    entries, previous = [], GENESIS
    for number, (account, event) in enumerate(contents, start=1):
        entry = Entry(
            sequence=number,
            time="2026-01-01T00:00:00+00:00",
            account=account,
            event=event,
            contract_digest="c",
            message_id=None if account in ("split", "override") else f"m{number}",
            request_digest="",
            reply_digest="",
            previous=previous,
        )
        entries.append(entry)
        previous = entry.hash
    return entries


def as_told(entries):
    return [{**asdict(entry), "hash": entry.hash} for entry in entries]


def random_entries(draw):
    contents = []
    for _ in range(draw.randrange(9)):
        account = draw.choice(["train", "holdout", "split", "override"])
        if account == "split":
            event = split_text(draw.choice("ab"), draw.choice([0.1, 0.25]), draw.choice("uv"))
            if (account, event) in contents:  # a ledger enters no split twice
                continue
        elif account == "override":
            event = canonical({"counter": draw.randrange(20), "reason": "lost", "previous": "x"})
        elif account == "train":
            step = SampledGaussian(sampling_rate=0.1, noise_multiplier=1.0, steps=2)
            event = canonical(event_to_json(step))
        else:
            event = canonical(event_to_json(Histogram(noise_multiplier=2.0)))
        contents.append((account, event))
    return chained(contents)


def test_both_readers_sort_any_entries_alike():
    draw = random.Random(4)
    adds = set()
    for _ in range(400):
        entries = random_entries(draw)
        first, second = Balance(entries), recount(as_told(entries))
        assert second.add == first.accounts_add
        assert second.lost == first.lost
        assert [number for number, _, _ in second.overrides] == [
            entry.sequence for entry in first.overrides
        ]
        for account, events in (("train", second.train), ("holdout", second.holdout)):
            assert events == [event_to_json(e) for e in first.history(account)]
        adds.add(second.add)
    assert adds == {True, False}


def test_a_chain_is_whole_as_long_as_nothing_in_it_changes():
    draw = random.Random(5)
    for _ in range(30):
        entries = as_told(random_entries(draw))
        last = entries[-1]["hash"] if entries else GENESIS
        head = {"sequence": len(entries), "hash": last}
        assert chain_problems(entries, head) == []
        for number, entry in enumerate(entries, start=1):
            for name in set(entry) - {"hash"}:
                changed = [dict(each) for each in entries]
                changed[number - 1][name] = "changed"
                assert chain_problems(changed, head) == [
                    f"the chain of the ledger breaks at entry {number}"
                ]


GOOD = steps(0.1, 1.0, 2)[0]


@pytest.mark.parametrize(
    "event",
    [
        {**GOOD, "steps": -100},
        {**GOOD, "steps": 0},
        {**GOOD, "steps": 2.5},
        {**GOOD, "steps": True},
        {**GOOD, "noise_multiplier": 0},
        {**GOOD, "noise_multiplier": -1.0},
        {**GOOD, "noise_multiplier": math.nan},
        {**GOOD, "noise_multiplier": math.inf},
        {**GOOD, "noise_multiplier": "1"},
        {**GOOD, "sampling_rate": 1.5},
        {**GOOD, "sampling_rate": 0},
        {**GOOD, "kind": "laplace"},
        {**GOOD, "more": 1},
        {"kind": "histogram"},
        {"kind": ["histogram"]},
        {},
        [],
        None,
        1,
    ],
)
def test_an_event_that_epsilon_cannot_be_computed_of_is_refused_by_its_number(event):
    entry = {"sequence": 7, "account": "train", "event": json.dumps(event), "previous": ""}
    with pytest.raises(PrivacyError, match="entry 7"):
        recount([entry])


def test_a_run_without_privacy_is_known_by_its_number():
    entry = {"sequence": 4, "account": "open", "event": "null", "previous": ""}
    found = recount([entry])
    assert found.open_runs == [4]
    assert (found.train, found.holdout, found.add) == ([], [], False)
    with pytest.raises(PrivacyError, match="entry 4"):
        recount([{**entry, "event": json.dumps(GOOD)}])


def test_an_unknown_account_is_refused():
    entry = {"sequence": 3, "account": "spare", "event": json.dumps(GOOD), "previous": ""}
    with pytest.raises(PrivacyError, match="entry 3 has an unknown account"):
        recount([entry])
