"""The statistics round at a holder: counted, noised, charged, and what it changes afterwards."""

import json
import math

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from credit_client.app import holder_app, noised_statistics, open_holder
from credit_client.gate import Gate
from credit_client.ledger import Ledger
from credit_client.training.examples import Examples
from credit_common import wire
from credit_common.accountant import epsilon
from credit_common.errors import CacheError, CreditError
from credit_common.privacy import mechanism_plan
from credit_common.record import Record
from credit_common.statistics import count_cells, edge_arrays, statistics_shapes
from credit_common.text import wide_features

RUN, NODE = 7, 2
EDGES = {"age": (25.0, 40.0, 60.0), "income": (1.0, 10.0, 50.0, 100.0)}


@pytest.fixture(autouse=True)
def coordinator():
    wire.set_identity(RUN, wire.SERVER_NODE)


@pytest.fixture(scope="module")
def asking(variant):
    return variant(edges="federated")


@pytest.fixture(scope="module")
def model(asking, model_for):
    return model_for(asking)


@pytest.fixture
def opened(asking, model, records):
    def make(users=None, contract=asking, own_model=model, ledger=None, **options):
        return open_holder(
            "shop",
            contract,
            size_class="small",
            ledger=ledger or Ledger.in_memory(),
            model=own_model,
            train_records=records(40) if users is None else users,
            holdout_records=records(30, seed=1),
            **options,
        )

    return make


def request(arrays, message_id="m1", kind="train", round_=1):
    content = RecordDict(
        {wire.ARRAYS: wire.array_record(arrays), wire.CONFIG: ConfigRecord({wire.ROUND: round_})}
    )
    message = Message(content, dst_node_id=NODE, message_type=kind)
    wire.set_message_id(message, message_id)
    return message


def answer(holder, message):
    return holder_app(holder)(message, wire.empty_context(RUN, NODE))


def beside(adapter, **changed):
    return {**adapter, **edge_arrays({**EDGES, **changed})}


def charges(ledger):
    return [
        (entry.account, json.loads(entry.event)["kind"])
        for entry in ledger.entries()
        if entry.account != "split"
    ]


def test_a_statistics_request_is_answered_with_noised_counts_and_nothing_else(opened, asking):
    ledger = Ledger.in_memory()
    reply = answer(opened(ledger=ledger), request({}, kind="query"))
    assert set(reply.content) == {wire.METRICS}
    counts = wire.reply_statistics(reply)
    assert {name: c.shape for name, c in counts.items()} == statistics_shapes(asking)
    for cells in counts.values():
        # No cell goes out as it was counted; noise lies on a grid that has the whole numbers too.
        assert (cells != np.round(cells)).mean() > 0.9
    assert charges(ledger) == [("train", "field_histograms")]
    event = mechanism_plan(asking, "small").statistics_event()
    delta = asking.privacy.delta
    assert ledger.epsilon("train", delta) == epsilon([event], delta)
    assert ledger.epsilon("holdout", delta) == 0


def test_training_users_are_counted_with_the_plans_noise(opened, asking, records):
    holder = opened()
    exact = count_cells(asking, records(40))
    assert {name: cells.sum() for name, cells in exact.items()} == dict.fromkeys(exact, 40)
    noise = []
    for i in range(40):
        counts = noised_statistics(holder, request({}, str(i), "query"))
        noise += [*(counts["statistics.age"] - exact["statistics.age"])]
        noise += [*(counts["statistics.income"] - exact["statistics.income"])]
    drawn, n = np.array(noise), len(noise)
    sigma = asking.statistics.noise_multiplier
    assert n == 40 * 241

    def excess(values):
        return (np.square(values).sum() / sigma**2 - n) / math.sqrt(2 * n)

    assert abs(excess(drawn)) < 6
    assert excess(0.9 * drawn) < -6
    assert abs(drawn.sum()) < 6 * sigma * math.sqrt(n)


def test_without_privacy_the_counts_are_exact(variant, model_for, opened, records):
    bare = variant(edges="federated", private=False)
    holder = opened(contract=bare, own_model=model_for(bare), allow_no_privacy=True)
    counts = noised_statistics(holder, request({}, kind="query"))
    for name, cells in count_cells(bare, records(40)).items():
        assert np.array_equal(counts[name], cells)


def test_a_repeated_request_gets_the_same_counts_and_another_id_other_noise(opened):
    ledger = Ledger.in_memory()
    holder = opened(ledger=ledger)
    first, again = (
        wire.reply_statistics(answer(holder, request({}, kind="query"))) for _ in range(2)
    )
    assert len(charges(ledger)) == 1
    other = wire.reply_statistics(answer(holder, request({}, "m2", "query")))
    assert len(charges(ledger)) == 2
    for name in first:
        assert np.array_equal(first[name], again[name])
        assert (first[name] != other[name]).mean() > 0.9  # on a grid, where two may meet


def test_the_id_of_a_statistics_request_takes_no_other_request(opened, model):
    ledger = Ledger.in_memory()
    holder = opened(ledger=ledger)
    answer(holder, request({}, kind="query"))
    for changed in (
        request({}, kind="query", round_=2),
        request(beside(model.initial_adapter())),
        request(beside(model.initial_adapter()), kind="evaluate"),
    ):
        assert answer(holder, changed).has_error()
    assert len(charges(ledger)) == 1


def test_a_coordinator_that_goes_on_asking_is_refused_at_the_budgets_end(opened, asking):
    ledger = Ledger.in_memory()
    holder = opened(ledger=ledger)
    replies = [answer(holder, request({}, f"m{i}", "query")) for i in range(60)]
    refused = [reply.has_error() for reply in replies]
    sent = refused.index(True)
    assert 1 <= sent < 60
    assert all(refused[sent:])
    assert len(charges(ledger)) == sent
    event, delta = holder.plan.statistics_event(), asking.privacy.delta
    assert ledger.epsilon("train", delta) <= asking.privacy.epsilon
    assert epsilon([event] * (sent + 1), delta) > asking.privacy.epsilon


def test_arrays_in_a_statistics_request_are_refused(opened, model):
    ledger = Ledger.in_memory()
    holder = opened(ledger=ledger)
    for i, arrays in enumerate((model.initial_adapter(), edge_arrays(EDGES))):
        assert answer(holder, request(arrays, str(i), "query")).has_error()
    assert charges(ledger) == []


def test_counts_outside_the_schema_do_not_leave(asking, model):
    ledger = Ledger.in_memory()
    gate = Gate(asking, mechanism_plan(asking, "small"), ledger, model.schema())
    right = {name: np.ones(shape) for name, shape in statistics_shapes(asking).items()}
    wrongs = [
        {},
        {**right, "statistics.tenure": np.ones(5)},
        {**right, "statistics.age": np.ones(40)},
        {**right, "statistics.age": np.ones(41, np.int64)},
        {**right, "statistics.age": np.full(41, np.nan)},
    ]
    for i, wrong in enumerate(wrongs):
        reply = gate.send_statistics(request({}, str(i), "query"), lambda wrong=wrong: wrong)
        assert reply.has_error()
    assert charges(ledger) == []
    assert not gate.send_statistics(request({}, "m", "query"), lambda: right).has_error()
    assert charges(ledger) == [("train", "field_histograms")]


@pytest.mark.parametrize("private", [True, False])
def test_a_contract_that_asks_for_no_edges_has_no_statistics_to_give(variant, model_for, private):
    plain = variant(private=private)
    ledger, model = Ledger.in_memory(), model_for(plain)
    plan = mechanism_plan(plain, "small")
    gate = Gate(plain, plan, ledger, model.schema(), allow_no_privacy=True)
    reply = gate.send_statistics(request({}, kind="query"), dict)
    assert reply.has_error()
    assert ledger.epsilon_overall(1e-5) == 0


def test_a_request_with_the_edges_is_trained_and_evaluated_under_them(opened, model, asking):
    ledger = Ledger.in_memory()
    holder, start = opened(ledger=ledger), model.initial_adapter()
    trained = answer(holder, request(beside(start)))
    arrays = {name: a.numpy() for name, a in trained.content[wire.ARRAYS].items()}
    assert {name: a.shape for name, a in arrays.items()} == model.schema()  # edges do not come back
    assert all((arrays[name] != start[name]).mean() > 0.9 for name in start)
    counted = answer(holder, request(beside(start), "m2", "evaluate"))
    assert len(counted.content[wire.METRICS][wire.HISTOGRAM]) == 2 * asking.evaluation.bins
    assert charges(ledger) == [("train", "sampled_gaussian"), ("holdout", "histogram")]


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"edges.age": None},
        {"edges.age": [25, 40]},
        {"edges.age": [25, 40, 60, 70]},
        {"edges.age": [40, 25, 60]},
        {"edges.age": [25, 25, 60]},
        {"edges.age": [25, math.nan, 60]},
        {"edges.age": [25, 40, math.inf]},
        {"edges.age": [18, 40, 60]},
        {"edges.age": [25, 40, 101]},
        {"edges.tenure": [1, 2]},
    ],
)
def test_other_edges_than_the_contract_allows_are_refused_and_cost_nothing(
    opened, model, kind, wrong
):
    ledger = Ledger.in_memory()
    arrays = beside(model.initial_adapter())
    for name, values in wrong.items():
        arrays[name] = values
        arrays = {n: np.asarray(a, np.float32) for n, a in arrays.items() if a is not None}
    assert answer(opened(ledger=ledger), request(arrays, kind=kind)).has_error()
    assert charges(ledger) == []


def test_edges_beside_an_adapter_that_asks_for_none_are_refused(variant, model_for, opened):
    plain = variant()
    ledger, own = Ledger.in_memory(), model_for(plain)
    holder = opened(contract=plain, own_model=own, ledger=ledger)
    arrays = {**own.initial_adapter(), **edge_arrays({"age": EDGES["age"]})}
    assert answer(holder, request(arrays)).has_error()
    assert charges(ledger) == []


def test_other_edges_change_the_wide_features_and_bert_reads_nothing_again(
    opened, model, asking, records, monkeypatch
):
    holder = opened()
    monkeypatch.setattr(model, "frozen", None)  # calling it would fail
    other = {"age": (30.0, 50.0, 70.0)}
    for changed in ({}, other, {}):
        resolved = asking.with_edges({**EDGES, **changed})
        expected = np.stack([wide_features(resolved, record) for record in records(40)])
        assert np.array_equal(holder.train.under(resolved).wide, expected)
    with pytest.raises(ValueError, match="no wide features"):
        _ = holder.train.wide
    start = model.initial_adapter()
    assert not answer(holder, request(beside(start), "a")).has_error()
    assert not answer(holder, request(beside(start, **other), "b")).has_error()


def test_features_under_the_same_edges_are_made_once(opened, asking):
    holder = opened()
    one, two = (holder.train.under(asking.with_edges(EDGES)) for _ in range(2))
    assert one.wide is two.wide
    assert len(one) == len(holder.train)


def test_examples_of_a_resolved_contract_need_no_edges(model, asking, records):
    resolved = asking.with_edges(EDGES)
    direct = Examples(model, resolved, records(9))
    assert np.array_equal(direct.wide, Examples(model, asking, records(9)).under(resolved).wide)
    other = Examples(model, asking, records(9))
    for mine, theirs in zip(direct.batches(np.arange(9)), other.batches(np.arange(9)), strict=True):
        assert np.array_equal(mine.hidden, theirs.hidden)  # texts say values, not bins


def test_copies_for_baselines_keep_the_wide_features_and_their_own_texts(model, asking, records):
    examples = Examples(model, asking, records(9))
    resolved = asking.with_edges(EDGES)
    whole = examples.under(resolved)
    wide, cls = examples.without_text().under(resolved), examples.at_cls(model).under(resolved)
    assert np.array_equal(wide.wide, whole.wide)
    assert np.array_equal(cls.wide, whole.wide)
    assert next(wide.batches(np.arange(9))).hidden is None
    assert next(cls.batches(np.arange(9))).hidden.shape[1] == 1
    assert next(whole.batches(np.arange(9))).hidden.shape[1] > 1


def test_an_outlier_changes_counts_that_are_charged_and_nothing_else(
    opened, model, asking, records
):
    """Row 17 of the privacy specification: what is fitted on data is noised and in the ledger."""
    users = records(40)
    outlier = Record(values={"age": 100.0, "income": 500.0}, protected={}, label=1.0)
    said, holders = [], []
    for own in (users, [*users, outlier]):
        ledger = Ledger.in_memory()
        holder = opened(own, ledger=ledger)
        counts = wire.reply_statistics(answer(holder, request({}, kind="query")))
        said.append(
            (
                charges(ledger),
                [e.event for e in ledger.entries()],
                {n: (c.dtype, c.shape) for n, c in counts.items()},
                len(wire.pack(counts)),
                holder.plan,
            )
        )
        holders.append(holder)
    assert said[0] == said[1]
    assert said[0][0] == [("train", "field_histograms")]
    # Under the edges that a coordinator sends, all else about the other users is as it was.
    resolved = asking.with_edges(EDGES)
    one, other = (holder.train.under(resolved).wide for holder in holders)
    assert np.array_equal(one, other[:40])
    without, with_ = (count_cells(asking, h.train.records) for h in holders)
    moved = sum(float(np.square(with_[n] - without[n]).sum()) for n in with_)
    assert moved == len(asking.federated_fields)  # no more than the charge is for


def test_no_users_value_is_in_what_a_failing_count_says(opened, monkeypatch, caplog):
    def fails(contract, users):
        raise ValueError("income of Jane Doe, 4711")

    monkeypatch.setattr("credit_client.app.count_cells", fails)
    reply = answer(opened(), request({}, kind="query"))
    assert reply.has_error()
    assert "Jane" not in str(reply.error) + caplog.text


def test_a_cache_that_fails_while_users_are_counted_is_charged(opened):
    class Lost:
        def __iter__(self):
            raise CacheError("the cache is cut short")

    ledger = Ledger.in_memory()
    holder = opened(ledger=ledger)
    holder.train.records = Lost()
    for _ in range(2):
        assert answer(holder, request({}, kind="query")).has_error()
        assert charges(ledger) == [("train", "field_histograms")]


def test_a_ledger_without_room_for_the_statistics_refuses_before_counting(
    opened, asking, monkeypatch
):
    ledger = Ledger.in_memory()
    holder = opened(ledger=ledger)
    spent = holder.plan.round_event()
    for i in range(1000):
        try:
            ledger.charge("train", spent, contract_digest="other", message_id=f"old {i}",
                          request_digest="", reply=b"", budget_epsilon=asking.privacy.epsilon,
                          delta=asking.privacy.delta)  # fmt: skip
        except CreditError:
            break
    before = len(charges(ledger))
    called = []
    monkeypatch.setattr("credit_client.app.count_cells", lambda *told: called.append(told) or {})
    assert answer(holder, request({}, kind="query")).has_error()
    assert called == []
    assert len(charges(ledger)) == before
