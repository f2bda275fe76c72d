import dataclasses
import json
import logging

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from credit_client.gate import Gate
from credit_client.ledger import Ledger
from credit_common import wire
from credit_common.accountant import epsilon
from credit_common.errors import CacheError, PrivacyError, WireError
from credit_common.events import event_from_json
from credit_common.privacy import mechanism_plan

SCHEMA = {"head.bias": (1,), "wide.weight": (1, 4)}
SENTINEL = "Jane Doe, plot 47-XI"  # digits alone would be in some time stamp


@pytest.fixture(autouse=True)
def coordinator():
    wire.set_identity(7, wire.SERVER_NODE)


@pytest.fixture
def ledger():
    with Ledger.in_memory() as made:
        yield made


@pytest.fixture
def plan(contract):
    return mechanism_plan(contract, "small")


@pytest.fixture
def gate(contract, plan, ledger):
    return Gate(contract, plan, ledger, SCHEMA)


def adapter(value=0.5):
    return {name: np.full(shape, value, np.float32) for name, shape in SCHEMA.items()}


def request(message_id="m1", kind="train", round_=1, value=0.0):
    content = RecordDict(
        {
            wire.ARRAYS: wire.array_record(adapter(value)),
            wire.CONFIG: ConfigRecord({wire.ROUND: round_}),
        }
    )
    message = Message(content, dst_node_id=2, message_type=kind)
    wire.set_message_id(message, message_id)
    return message


class Compute:
    """Counts its calls and returns something else each time."""

    def __init__(self, make=adapter):
        self.calls = 0
        self.make = make

    def __call__(self):
        self.calls += 1
        return self.make(self.calls)


def counts(value=0.0):
    return np.full((2, 50), float(value))


def plain(reply):
    """All that a reply says, in plain values."""
    if reply.has_error():
        return {"code": reply.error.code, "reason": reply.error.reason}
    said = {}
    for name, record in reply.content.items():
        said[name] = {
            key: (a.dtype, tuple(a.shape), a.data) if hasattr(a, "data") else a
            for key, a in record.items()
        }
    return said


REFUSAL = {"code": wire.REFUSED, "reason": "refused"}


def spent(ledger):
    return [e for e in ledger.entries() if e.account != "split"]


def test_a_repeated_request_gets_the_same_bytes_without_computing(gate, ledger):
    train = Compute()
    first = gate.send_adapter(request(), train)
    again = gate.send_adapter(request(), train)
    assert plain(first) == plain(again) != REFUSAL
    assert (train.calls, len(spent(ledger))) == (1, 1)
    other = gate.send_adapter(request("m2"), train)
    assert plain(other) != plain(first)
    assert (train.calls, len(spent(ledger))) == (2, 2)


def test_a_repeated_evaluation_never_draws_fresh_noise(gate, ledger):
    count = Compute(counts)
    first = gate.send_histogram(request(kind="evaluate"), count)
    again = gate.send_histogram(request(kind="evaluate"), count)
    assert plain(first) == plain(again) != REFUSAL
    assert (count.calls, len(spent(ledger))) == (1, 1)


@pytest.mark.parametrize("changed", [{"value": 1.0}, {"round_": 2}, {"kind": "train.default"}])
def test_an_id_that_was_answered_takes_no_other_request(gate, ledger, changed):
    train = Compute()
    gate.send_adapter(request(), train)
    assert plain(gate.send_adapter(request(**changed), train)) == REFUSAL
    assert (train.calls, len(spent(ledger))) == (1, 1)


def test_the_budgets_end_refuses_and_charges_nothing(contract, gate, ledger, plan):
    train = Compute()
    replies = [gate.send_adapter(request(f"m{i}"), train) for i in range(60)]
    refused = [plain(reply) == REFUSAL for reply in replies]
    sent = refused.index(True)
    assert plan.rounds <= sent < 60
    assert all(refused[sent:])
    assert train.calls == len(spent(ledger)) == sent
    within = ledger.epsilon("train", plan.delta)
    assert within <= plan.epsilon < epsilon([plan.round_event()] * (sent + 1), plan.delta)
    # What was answered before is still answered, with the same bytes.
    assert plain(gate.send_adapter(request("m0"), train)) == plain(replies[0])
    assert train.calls == sent


def test_the_charge_is_in_the_ledger_before_a_reply_is_built(gate, ledger, monkeypatch):
    seen = []

    def build(message, payload, weight):
        seen.append(len(spent(ledger)))
        return wire.adapter_reply(message, payload, weight)

    monkeypatch.setattr("credit_client.gate.adapter_reply", build)
    train = Compute()
    gate.send_adapter(request(), lambda: (seen.append(len(spent(ledger))), train())[1])
    assert seen == [0, 1]


def test_a_charge_that_fails_sends_nothing(gate, ledger, monkeypatch):
    def broken(*args, **kwargs):
        raise PrivacyError("the disk is full")

    monkeypatch.setattr(ledger, "charge", broken)
    assert plain(gate.send_adapter(request(), Compute())) == REFUSAL


def raising(error):
    def fails():
        raise error("anything")

    return fails


def test_a_request_that_is_wrong_in_itself_charges_nothing_and_may_come_again(gate, ledger):
    """Own errors, but those of the cache, are raised before data is read."""
    assert plain(gate.send_adapter(request(), raising(WireError))) == REFUSAL
    assert spent(ledger) == []
    assert plain(gate.send_adapter(request(), Compute())) != REFUSAL


@pytest.mark.parametrize("error", [ValueError, MemoryError, KeyError])
def test_where_computing_fails_it_is_charged_and_refused_for_ever(gate, ledger, plan, error):
    """Data may have been read: whether it failed may be due to one user."""
    assert plain(gate.send_adapter(request(), raising(error))) == REFUSAL
    assert len(spent(ledger)) == 1
    assert ledger.epsilon("train", plan.delta) == epsilon([plan.round_event()], plan.delta)
    train = Compute()
    assert plain(gate.send_adapter(request(), train)) == REFUSAL
    assert (train.calls, len(spent(ledger))) == (0, 1)


@pytest.mark.parametrize("send", ["send_adapter", "send_histogram", "send_statistics"])
def test_a_cache_that_fails_is_charged_and_refused_for_ever(variant, ledger, caplog, send):
    """Which rows are read from it depends on who was sampled."""
    asking = variant(edges="federated")
    gate = Gate(asking, mechanism_plan(asking, "small"), ledger, SCHEMA)
    compute = Compute(lambda call: raising(CacheError)())
    for _ in range(2):
        assert plain(getattr(gate, send)(request(), compute)) == REFUSAL
        assert (compute.calls, len(spent(ledger))) == (1, 1)
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert told.endswith("anything")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_moved_and_charged_never_refused(gate, ledger, value):
    """A refusal would tell of a noised release that nobody charged, at weights of its choice."""
    released = plain(gate.send_adapter(request(), lambda: adapter(value)))
    assert released != REFUSAL
    (array,) = np.frombuffer(released["arrays"]["head.bias"][2][-4:], np.float32)
    assert np.isfinite(array)
    assert len(spent(ledger)) == 1


def fails_with_data():
    try:
        float(SENTINEL)
    except ValueError as inner:
        raise RuntimeError(f"row of {SENTINEL}") from inner


@pytest.mark.parametrize("send", ["send_adapter", "send_histogram"])
def test_data_in_an_exception_reaches_neither_reply_nor_log(gate, caplog, capfd, send):
    caplog.set_level(logging.DEBUG)
    reply = getattr(gate, send)(request(), fails_with_data)
    assert plain(reply) == REFUSAL
    printed = "".join(capfd.readouterr())
    assert "RuntimeError" in caplog.text  # the holder does learn what kind of error it was
    for where in (str(reply), repr(reply.error), caplog.text, printed):
        assert "Jane" not in where
        assert "47-XI" not in where
    assert not any(record.exc_info for record in caplog.records)


BAD_ADAPTERS = {
    "extra": {**adapter(), "users": np.ones(1, np.float32)},
    "missing": {"head.bias": np.ones(1, np.float32)},
    "shape": {**adapter(), "head.bias": np.ones(2, np.float32)},
    "double": {**adapter(), "head.bias": np.ones(1, np.float64)},
}


@pytest.mark.parametrize("bad", BAD_ADAPTERS)
def test_an_adapter_outside_the_schema_does_not_leave(gate, ledger, bad):
    assert plain(gate.send_adapter(request(), lambda: BAD_ADAPTERS[bad])) == REFUSAL
    assert spent(ledger) == []


ENCODED = {
    "head.bias": np.ones(1, np.int8),
    "head.bias.scale": np.ones(1, np.float32),
    "wide.weight": np.ones((1, 4), np.int8),
    "wide.weight.scale": np.ones(1, np.float32),
}
BAD_UPLOADS = {
    "the adapter itself": adapter(),
    "a half of it": {**ENCODED, "head.bias": np.ones(1, np.uint16)},
    "wider": {**ENCODED, "head.bias": np.ones(1, np.int64)},
    "extra": {**ENCODED, "users": np.ones(1, np.int8)},
    "missing": {name: a for name, a in ENCODED.items() if name != "wide.weight.scale"},
    "shape": {**ENCODED, "wide.weight": np.ones((4, 1), np.int8)},
    "double": {**ENCODED, "wide.weight.scale": np.ones(1)},
}


@pytest.fixture
def gate8(contract, plan, ledger):
    training = dataclasses.replace(contract.training, upload="int8")
    return Gate(dataclasses.replace(contract, training=training), plan, ledger, SCHEMA)


def test_under_int8_the_upload_leaves_as_it_is(gate8, ledger):
    said = plain(gate8.send_adapter(request(), lambda: ENCODED))
    assert {name: (dtype, shape) for name, (dtype, shape, _) in said["arrays"].items()} == {
        name: (a.dtype.name, a.shape) for name, a in ENCODED.items()
    }
    assert len(spent(ledger)) == 1


@pytest.mark.parametrize("bad", BAD_UPLOADS)
def test_under_int8_nothing_else_leaves(gate8, ledger, bad):
    assert plain(gate8.send_adapter(request(), lambda: BAD_UPLOADS[bad])) == REFUSAL
    assert spent(ledger) == []


@pytest.mark.parametrize(
    "bad",
    [np.zeros((2, 49)), np.zeros((2, 51)), np.zeros(100), np.zeros((2, 50), np.int64)],
    ids=["fewer", "more", "flat", "counts without noise"],
)
def test_a_histogram_of_another_form_does_not_leave(gate, ledger, bad):
    reply = gate.send_histogram(request(kind="evaluate"), lambda: bad)
    assert plain(reply) == REFUSAL
    assert spent(ledger) == []


@pytest.fixture
def by_sex(grouped, ledger):
    """A gate whose last round counts 2 x 62 cells: 50 of the scores, 3 of each of 4 codes."""
    return Gate(grouped, mechanism_plan(grouped, "small"), ledger, SCHEMA)


def test_counts_by_groups_leave_in_the_last_round_and_are_charged_as_such(by_sex, ledger, grouped):
    for round_, columns in ((2, 50), (3, 62)):
        asked = request(f"m{round_}", kind="evaluate", round_=round_)
        assert plain(by_sex.send_histogram(asked, lambda n=columns: np.zeros((2, n)))) != REFUSAL
    events = [json.loads(entry.event) for entry in spent(ledger)]
    one = {"kind": "histogram", "noise_multiplier": 2.0, "releases": 1}
    two = {"kind": "field_histograms", "noise_multiplier": 2.0, "fields": 2, "releases": 1}
    assert events == [one, two]
    made = [event_from_json(event) for event in events]
    assert ledger.epsilon("holdout", 1e-5) == pytest.approx(epsilon(made, 1e-5))


@pytest.mark.parametrize(("round_", "columns"), [(1, 62), (3, 50), (3, 61), (4, 62)])
def test_counts_that_are_not_those_of_the_round_do_not_leave(by_sex, ledger, round_, columns):
    asked = request(kind="evaluate", round_=round_)
    assert plain(by_sex.send_histogram(asked, lambda: np.zeros((2, columns)))) == REFUSAL
    assert spent(ledger) == []


def test_a_coordinator_that_calls_every_round_the_last_pays_for_groups_each_time(
    by_sex, ledger, grouped
):
    answered = 0
    for number in range(40):
        asked = request(f"m{number}", kind="evaluate", round_=3)
        if plain(by_sex.send_histogram(asked, lambda: np.zeros((2, 62)))) == REFUSAL:
            break
        answered += 1
    budget, last = grouped.privacy.epsilon, mechanism_plan(grouped, "small").evaluation_event(1)
    assert epsilon([last] * answered, 1e-5) <= budget < epsilon([last] * (answered + 1), 1e-5)


def test_an_evaluation_without_a_round_is_refused(gate, ledger):
    content = RecordDict({wire.ARRAYS: wire.array_record(adapter())})
    message = Message(content, dst_node_id=2, message_type="evaluate")
    wire.set_message_id(message, "m1")
    assert plain(gate.send_histogram(message, Compute(counts))) == REFUSAL
    assert spent(ledger) == []


def test_an_adapter_reply_holds_the_adapter_and_the_public_weight_alone(gate, plan):
    said = plain(gate.send_adapter(request(), Compute()))
    assert set(said) == {"arrays", "metrics"}
    assert set(said["arrays"]) == set(SCHEMA)
    for name, (dtype, shape, _) in said["arrays"].items():
        assert (dtype, shape) == ("float32", SCHEMA[name])
    assert said["metrics"] == {"weight": plan.expected_batch_size} == {"weight": 30.0}


def test_a_histogram_reply_holds_the_histogram_and_the_public_weight_alone(gate):
    said = plain(gate.send_histogram(request(kind="evaluate"), lambda: counts(1.5)))
    assert said == {"metrics": {"weight": 30.0, "histogram": [1.5] * 100}}


def test_another_size_class_changes_the_weight_alone(contract, plan, ledger):
    large = mechanism_plan(contract, "large")
    gate = Gate(contract, large, ledger, SCHEMA)
    said = plain(gate.send_adapter(request(), Compute()))
    assert said["metrics"] == {"weight": 300.0}
    assert plan.round_event() == large.round_event()


@pytest.mark.parametrize("kind", ["train", "train.default", "evaluate", "query"])
def test_a_message_type_cannot_choose_what_is_charged(contract, ledger, kind):
    quiet = dataclasses.replace(
        contract, evaluation=dataclasses.replace(contract.evaluation, noise_multiplier=50.0)
    )
    gate = Gate(quiet, mechanism_plan(quiet, "small"), ledger, SCHEMA)
    gate.send_adapter(request("m1", kind=kind), Compute())
    gate.send_histogram(request("m2", kind=kind), Compute(counts))
    trained, counted = spent(ledger)
    assert (trained.account, counted.account) == ("train", "holdout")
    assert "sampled_gaussian" in trained.event
    assert "histogram" in counted.event


def test_no_privacy_is_refused_unless_it_is_allowed(contract, ledger):
    open_contract = contract.without_privacy()
    plan = mechanism_plan(open_contract, "small")
    with pytest.raises(PrivacyError, match="allow-no-privacy"):
        Gate(open_contract, plan, ledger, SCHEMA)
    gate = Gate(open_contract, plan, ledger, SCHEMA, allow_no_privacy=True)
    assert plain(gate.send_adapter(request(), Compute())) != REFUSAL
    assert ledger.epsilon("train", plan.delta) == float("inf")


def test_a_request_without_a_round_or_arrays_is_refused(gate, ledger):
    train = Compute()
    empty = Message(RecordDict({}), dst_node_id=2, message_type="train")
    wire.set_message_id(empty, "m1")
    assert plain(gate.send_adapter(empty, train)) == REFUSAL
    assert plain(gate.send_adapter(request(round_=0), train)) == REFUSAL
    assert plain(gate.send_adapter(request(message_id=""), train)) == REFUSAL
    assert spent(ledger) == []
