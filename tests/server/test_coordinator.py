"""What the coordinator tells, and how it ends. Whole runs are in tests/test_commands.py."""

import dataclasses
import math

import numpy as np
import pytest

from credit_common.bundle import Bundle
from credit_common.claim import released_figures, released_groups, schedule_epsilon
from credit_common.contract import parse_contract
from credit_common.errors import LinkError, WireError
from credit_common.evaluation import read_released
from credit_common.model import CreditModel
from credit_common.release import open_release
from credit_server.aggregate import RoundReport, State
from credit_server.authority import create_authority
from credit_server.checkpoint import Keeper, new_run, unfinished
from credit_server.coordinator import _History, run

CREATED = "2026-01-02T03:04:05+00:00"


@pytest.fixture
def contract(contract_text):
    text = contract_text.replace("rounds = 3", "rounds = 6")
    return parse_contract(text.replace("[evaluation]\n", "[evaluation]\nevery = 2\n"))


@pytest.fixture
def told(contract):
    """A history, and the events that it has told."""
    events = []
    history = _History(contract, lambda event, **facts: events.append((event, facts)))
    history.begin()
    return history, events


def counts(contract, shift, users=20_000):
    """A histogram whose scores lie `shift` bins higher, with noise."""
    at = np.arange(contract.evaluation.bins) - contract.evaluation.bins / 2 - shift
    good, bad = np.exp(-((at / 6) ** 2)), np.exp(-(((at - 3) / 6) ** 2))
    table = users * np.stack([0.8 * good / good.sum(), 0.2 * bad / bad.sum()])
    sigma = contract.evaluation.noise_multiplier * math.sqrt(3)
    return table + np.random.default_rng(int(shift)).normal(0, sigma, table.shape)


def report(round_, histogram=None, holders=3):
    evaluated = 0 if histogram is None else 3
    return RoundReport(
        round=round_, holders=holders, adapter={}, histogram=histogram, evaluated=evaluated
    )


def test_a_round_is_told_with_figures_and_their_intervals(contract, told):
    history, events = told
    seen = counts(contract, 0)
    history.add(report(1))
    history.add(report(2, seen))
    assert (events[0][1]["figures"], events[0][1]["intervals"]) == ({}, {})
    facts = events[1][1]
    for name, figure in read_released(contract, seen, 3).items():
        assert facts["figures"][name] == pytest.approx(figure.value, abs=1e-6)
        assert facts["intervals"][name] == pytest.approx([figure.low, figure.high], abs=1e-6)
    low, high = facts["intervals"]["auc"]
    assert low < facts["figures"]["auc"] < high < low + 0.1


def test_the_last_round_tells_how_groups_fare_and_the_scores_are_read_as_before(grouped_text):
    text = grouped_text.replace("rounds = 3", "rounds = 6")
    contract = parse_contract(text.replace("[evaluation]\n", "[evaluation]\nevery = 2\n"))
    events = []
    history = _History(contract, lambda event, **facts: events.append(facts))
    history.begin()
    seen = counts(contract, 0)
    of_sexes = np.tile([[300.0, 200.0, 100.0], [40.0, 60.0, 90.0]], 4)
    history.add(report(2, seen))
    history.add(report(6, np.concatenate([seen, of_sexes], axis=1)))
    assert "fairness" not in events[0]
    assert events[1]["figures"] == events[0]["figures"]
    assert events[1]["psi"]["value"] == 0
    (told,) = events[1]["fairness"]
    assert (told["field"], told["four_fifths"]) == ("sex", "yes")
    assert told["groups"][0]["figures"]["approved"] == pytest.approx(340 / 790, abs=1e-6)
    facts = history.facts((), CREATED)
    (gaps,) = released_groups(contract, facts)
    assert gaps.parity_ratio.value == 1
    with pytest.raises(WireError, match="the contract's 62 bins"):
        released_groups(contract, dataclasses.replace(facts, histogram=facts_rows(seen)))


def test_a_round_tells_the_larger_epsilon_of_training_and_hold_out_users(contract_text):
    larger = []
    for sigma in ("0.9", "20.0"):
        contract = parse_contract(
            contract_text.replace("[evaluation]\nnoise_multiplier = 2.0", EVERY.format(sigma))
        )
        events = []
        history = _History(contract, lambda event, events=events, **facts: events.append(facts))
        history.begin()
        for round_ in (1, 2, 3):
            history.add(report(round_, counts(contract, 0)))
            train, holdout = schedule_epsilon(contract, round_)
            assert events[-1]["epsilon"] == max(train, holdout)
        larger.append(holdout > train)
    assert larger == [True, False]


EVERY = "[evaluation]\nevery = 1\nnoise_multiplier = {}"


def facts_rows(table):
    return tuple(map(tuple, table.tolist()))


def test_later_evaluations_are_compared_with_the_first(contract, told):
    history, events = told
    for round_, shift in ((1, None), (2, 0), (3, None), (4, 0), (6, 12)):
        history.add(report(round_, None if shift is None else counts(contract, shift)))
    told_psi = [facts["psi"] for _, facts in events]
    assert told_psi[:3] == [None] * 3  # there is nothing to compare the first with
    same, moved = told_psi[3:]
    assert same["value"] == 0
    assert same["band"] == "stable"
    assert moved["low"] > 0.25
    assert moved["band"] == "large"


def test_where_noise_hides_a_shift_none_is_claimed(contract, told):
    history, events = told
    for round_, seed in ((2, 0), (4, 1)):
        noise = np.random.default_rng(seed).normal(0, 30, (2, contract.evaluation.bins))
        history.add(report(round_, 20 + noise))
    assert events[-1][1]["psi"]["band"] == "unclear"


def test_the_facts_carry_the_histogram_and_not_what_is_read_from_it(contract, told):
    history, events = told
    seen = counts(contract, 0)
    history.add(report(1, holders=2))
    history.add(report(2, seen))
    facts = history.facts((), CREATED)
    assert (facts.rounds, facts.holders, facts.evaluated) == (2, 2, 3)
    assert np.array_equal(np.array(facts.histogram), seen)
    read = {
        name: round(figure.value, 6) for name, figure in released_figures(contract, facts).items()
    }
    assert read == events[-1][1]["figures"]
    history.add(report(3))
    assert history.facts((), CREATED).histogram is None
    assert history.facts((), CREATED).evaluated == 0


def test_what_was_set_aside_is_told_with_its_round(told):
    history, events = told
    history.add(dataclasses.replace(report(1), set_aside={"books": {"norm": 1}}))
    history.add(report(2))
    assert [facts["set_aside"] for _, facts in events] == [{"books": {"norm": 1}}, {}]


def test_without_a_round_there_is_nothing_to_release(told):
    with pytest.raises(LinkError, match="no round"):
        told[0].facts((), CREATED)


class Crash(BaseException):
    """The coordinator is gone."""


@pytest.fixture
def trained(tmp_path, contract_text):
    """A coordinator's folder whose rounds are done, and no more; its bundle; what it tells."""
    text = contract_text.replace("[model]", '[model]\ntrain = ["wide"]').replace(
        "[task]", "grace_seconds = 0.2\n[task]"
    )
    contract, home = parse_contract(text), tmp_path / "coordinator"
    authority = create_authority(home, contract.federation.name)
    bundle = Bundle(
        federation=contract.federation.name,
        address="localhost:9440",
        ca_pem=authority.ca_pem.decode(),
        contract_text=text,
    )
    schema = CreditModel(contract, None).schema()
    adapter = {name: np.full(shape, 0.25, np.float32) for name, shape in schema.items()}
    keeper = Keeper(home, new_run(contract))
    state = State(round=3, holders=3, adapter=adapter, released=adapter, edges={})
    for number in (1, 2, 3):
        keeper.settle(state, report(number, counts(contract, 0), holders=5 - number))
    return home, bundle


def resumed(home, bundle):
    events = []
    begun = unfinished(home, bundle.contract, resume=True)

    def tell(event, **facts):
        events.append(event)

    release = run(home, bundle, begun, listen="127.0.0.1:0", tell=tell)
    return release, events


def test_a_run_whose_rounds_are_done_waits_for_nobody_and_is_released(trained):
    home, bundle = trained
    release, events = resumed(home, bundle)
    assert events == ["listening", "resumed", "done"]
    opened = open_release(release)
    assert (opened.facts.rounds, opened.facts.holders, opened.facts.evaluated) == (3, 2, 3)
    assert all((array == 0.25).all() for array in opened.adapter.values())
    assert unfinished(home, bundle.contract, resume=False) is None  # another run may begin


@pytest.mark.parametrize("moment", ["write_release", "finish"])
def test_what_was_released_before_a_crash_is_what_holders_are_told_of(trained, monkeypatch, moment):
    home, bundle = trained
    told = []

    def dies(*arguments, **named):
        raise Crash

    with monkeypatch.context() as patch:
        where = "GrpcGrid.finish" if moment == "finish" else "write_release"
        patch.setattr(f"credit_server.coordinator.{where}", dies)
        with pytest.raises(Crash):
            resumed(home, bundle)
    kept = unfinished(home, bundle.contract, resume=True).closing
    # Another time, and another place for a release that comes now.
    (home / "releases" / "007").mkdir(parents=True)
    monkeypatch.setattr(
        "credit_server.coordinator.GrpcGrid.finish",
        lambda grid, finished, *, again: told.append((finished, again)),
    )
    release, _ = resumed(home, bundle)
    ((finished, again),) = told
    assert again
    assert release == home / "releases" / kept.release
    assert open_release(release).facts.created == finished.created == kept.created


def test_a_checkpoint_of_another_model_is_refused(trained):
    home, bundle = trained
    kept = unfinished(home, bundle.contract, resume=True)
    other = dataclasses.replace(kept.state, adapter={"w": np.zeros(3, np.float32)})
    with pytest.raises(WireError, match="not in the schema"):
        run(
            home,
            bundle,
            dataclasses.replace(kept, state=other),
            listen="127.0.0.1:0",
            tell=lambda event, **facts: None,
        )
