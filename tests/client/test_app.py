import dataclasses
import logging
import os

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from credit_client.app import Holder, holder_app, noised_histogram, open_holder
from credit_client.cache import Cache
from credit_client.ledger import Ledger
from credit_client.training.examples import Examples
from credit_client.training.hidden import Store
from credit_client.training.loop import score
from credit_client.training.randomness import SecureRandom, SeededRandom
from credit_common import wire
from credit_common.accountant import epsilon
from credit_common.errors import CacheError, ContractError, PrivacyError, ShardError
from credit_common.evaluation import count_users
from credit_common.privacy import mechanism_plan
from credit_common.upload import decode

CONTEXT_RUN, NODE = 7, 2
REFUSAL = (wire.REFUSED, "refused")


@pytest.fixture(autouse=True)
def coordinator():
    wire.set_identity(CONTEXT_RUN, wire.SERVER_NODE)


@pytest.fixture(scope="module")
def model(variant, model_for):
    return model_for(variant())


@pytest.fixture
def opened(model, records):
    """Opens a holder with n training users in a ledger of its own."""

    def make(n=40, contract=None, own_model=None, holdout=30, **options):
        return open_holder(
            "shop",
            contract or model.contract,
            size_class="small",
            ledger=options.pop("ledger", None) or Ledger.in_memory(),
            model=own_model or model,
            train_records=records(n),
            holdout_records=records(holdout, seed=1),
            **options,
        )

    return make


def request(arrays, message_id="m1", kind="train", config=None):
    content = RecordDict(
        {
            wire.ARRAYS: wire.array_record(arrays),
            wire.CONFIG: ConfigRecord({wire.ROUND: 1} if config is None else config),
        }
    )
    message = Message(content, dst_node_id=NODE, message_type=kind)
    wire.set_message_id(message, message_id)
    return message


def answer(holder, message):
    return holder_app(holder)(message, wire.empty_context(CONTEXT_RUN, NODE))


def arrays_of(reply):
    return {name: array.numpy() for name, array in reply.content[wire.ARRAYS].items()}


def refused(reply):
    return reply.has_error() and (reply.error.code, reply.error.reason) == REFUSAL


def accounts(ledger):
    return [entry.account for entry in ledger.entries() if entry.account != "split"]


def test_a_training_request_is_answered_with_a_noised_adapter(opened, model):
    ledger = Ledger.in_memory()
    start = model.initial_adapter()
    reply = answer(opened(ledger=ledger), request(start))
    trained = arrays_of(reply)
    assert {name: array.shape for name, array in trained.items()} == model.schema()
    # On a grid, where some may meet.
    assert all((trained[name] != start[name]).mean() > 0.9 for name in start)
    assert dict(reply.content[wire.METRICS]) == {wire.WEIGHT: 30.0}
    assert accounts(ledger) == ["train"]
    assert reply.metadata.reply_to_message_id == "m1"


@pytest.mark.parametrize("upload", ["bfloat16", "int8"])
def test_a_training_request_is_answered_as_the_contract_has_it_sent(
    opened, model, variant, shaken, upload
):
    contract = variant(training={"upload": upload})
    holder, start = opened(contract=contract), shaken(model)
    first, again = (arrays_of(answer(holder, request(start))) for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    after = decode(upload, first, start)
    for name, values in after.items():
        moved = np.abs(values - start[name])
        assert moved.max() < 5  # changes, not the adapter: it moves by noise alone
        assert moved.max() > 0 or values.size == 1
    other = arrays_of(answer(holder, request(start, "m2")))
    assert not any(
        np.array_equal(first[name], other[name]) for name in first if first[name].ndim > 1
    )


def test_a_seed_repeats_the_very_bits_and_rounding_moves_no_batch(opened, model, variant):
    """Rounding draws from a stream of its own: batches are the same in every encoding."""
    found = {}
    for upload in ("float32", "int8"):
        contract = variant(private=False, training={"upload": upload})
        for run in range(2):
            source = SeededRandom(5, mechanism_plan(contract, "small"))
            holder = opened(contract=contract, source=source, allow_no_privacy=True)
            start = model.initial_adapter()
            found[upload, run] = [arrays_of(answer(holder, request(start, i))) for i in "abc"]
    for upload in ("float32", "int8"):
        for one, other in zip(found[upload, 0], found[upload, 1], strict=True):
            assert all(np.array_equal(one[name], other[name]) for name in one)
    start = model.initial_adapter()
    for plain, sent in zip(found["float32", 0], found["int8", 0], strict=True):
        rounded = decode("int8", sent, start)
        for name, values in plain.items():
            step = sent[f"{name}.scale"].max() * (1 + 1e-6)
            assert np.abs(rounded[name] - values).max() <= step + 1e-6


def test_an_evaluation_request_is_answered_with_a_noised_histogram(opened, model):
    ledger = Ledger.in_memory()
    reply = answer(opened(ledger=ledger), request(model.initial_adapter(), kind="evaluate"))
    assert set(reply.content) == {wire.METRICS}
    metrics = dict(reply.content[wire.METRICS])
    assert set(metrics) == {wire.WEIGHT, wire.HISTOGRAM}
    counts = np.array(metrics[wire.HISTOGRAM])
    assert counts.shape == (100,)
    # No cell goes out as it was counted; noise lies on a grid that has the whole numbers too.
    assert (counts != np.round(counts)).mean() > 0.9
    assert accounts(ledger) == ["holdout"]


def test_the_noise_of_a_histogram_has_the_plans_deviation(opened, model):
    holder = opened()
    message = request(model.initial_adapter(), kind="evaluate")
    exact = count_users(
        model.contract,
        score(model, holder.holdout, model.initial_adapter()),
        holder.holdout.labels,
    )
    assert exact.sum() == 30
    noise = np.concatenate([(noised_histogram(holder, message) - exact).ravel() for _ in range(60)])
    n, sigma = noise.size, model.contract.evaluation.noise_multiplier

    def excess(values):
        return (np.square(values).sum() / sigma**2 - n) / np.sqrt(2 * n)

    assert abs(excess(noise)) < 6
    assert excess(0.8 * noise) < -6
    assert abs(noise.sum()) < 6 * sigma * np.sqrt(n)


def test_without_privacy_a_histogram_is_exact(variant, model_for, opened):
    contract = variant(private=False)
    model = model_for(contract)
    holder = opened(contract=contract, own_model=model, allow_no_privacy=True)
    counts = noised_histogram(holder, request(model.initial_adapter()))
    assert counts.dtype == np.float64
    assert np.array_equal(counts, np.round(counts))
    assert counts.sum() == 30


def test_a_repeated_message_is_answered_once(opened, model):
    holder = opened()
    start = model.initial_adapter()
    first, again = (arrays_of(answer(holder, request(start))) for _ in range(2))
    other = arrays_of(answer(holder, request(start, "m2")))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_malformed_request_is_refused_and_costs_nothing(opened, model, kind):
    ledger = Ledger.in_memory()
    holder = opened(ledger=ledger)
    start = model.initial_adapter()
    nan = {**start, "head.bias": np.full(1, np.nan, np.float32)}
    malformed = [
        request(start, kind=kind, config={}),
        request(start, kind=kind, config={wire.ROUND: 0}),
        request({}, kind=kind),
        request({**start, "extra": np.zeros(1, np.float32)}, kind=kind),
        request({**start, "head.bias": np.zeros(2, np.float32)}, kind=kind),
        request({**start, "head.bias": np.zeros(1, np.float64)}, kind=kind),
        request(nan, kind=kind),
    ]
    for i, message in enumerate(malformed):
        wire.set_message_id(message, f"bad {i}")
        assert refused(answer(holder, message))
    assert accounts(ledger) == []
    assert not refused(answer(holder, request(start, kind=kind)))


@pytest.mark.parametrize("kind", ["query", "train.other", "evaluate.other", "query.default"])
def test_no_other_type_of_message_is_answered(opened, model, kind):
    ledger = Ledger.in_memory()
    with pytest.raises(ValueError, match=r"No .* function registered"):
        answer(opened(ledger=ledger), request(model.initial_adapter(), kind=kind))
    assert accounts(ledger) == []


def test_an_alias_of_training_is_charged_as_training(opened, variant, model_for):
    # Flower routes "train.default" to the same function; evaluations may be far cheaper.
    contract = variant(evaluation={"noise_multiplier": 100.0})
    ledger = Ledger.in_memory()
    holder = opened(contract=contract, own_model=model_for(contract), ledger=ledger)
    reply = answer(holder, request(holder.model.initial_adapter(), kind="train.default"))
    assert not refused(reply)
    delta = holder.plan.delta
    assert ledger.epsilon("train", delta) == epsilon([holder.plan.round_event()], delta)


@pytest.mark.parametrize(("n", "upload"), [(63, "float32"), (64, "int8"), (128, "bfloat16")])
def test_one_user_more_changes_no_size_and_no_weight(opened, model, variant, n, upload):
    sizes = []
    for users in (n, n + 1):
        contract = variant(training={"upload": upload})
        holder = opened(users, holdout=users, contract=contract)
        said = []
        for kind in ("train", "evaluate"):
            reply = answer(holder, request(model.initial_adapter(), kind, kind))
            arrays = reply.content.array_records.get(wire.ARRAYS, {})
            metrics = dict(reply.content[wire.METRICS])
            said.append(
                (
                    sorted(
                        (name, a.dtype, tuple(a.shape), len(a.data)) for name, a in arrays.items()
                    ),
                    metrics[wire.WEIGHT],
                    len(metrics.get(wire.HISTOGRAM, [])),
                )
            )
        sizes.append((said, holder.plan))
    assert sizes[0] == sizes[1]


def test_a_private_holder_takes_no_source_of_randomness(opened, variant):
    smuggled = SeededRandom(1, mechanism_plan(variant(private=False), "small"))
    with pytest.raises(PrivacyError, match="SecureRandom alone"):
        opened(source=smuggled)
    holder = opened()
    parts = {f.name: getattr(holder, f.name) for f in dataclasses.fields(Holder)}
    for name in ("sampling", "noise", "rounding"):
        assert isinstance(parts[name], SecureRandom)
        with pytest.raises(PrivacyError, match="SecureRandom alone"):
            Holder(**{**parts, name: smuggled})


def test_no_seed_and_no_setting_repeats_a_private_release(opened, model, monkeypatch):
    import random

    import torch

    names = ("PYTHONHASHSEED", "SEED", "CREDIT_SEED", "PL_GLOBAL_SEED")
    releases = []
    for _ in range(2):
        for name in names:
            monkeypatch.setitem(os.environ, name, "1")
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002  # the old global state is one of the seeds
        torch.manual_seed(1)
        holder = opened()
        start = model.initial_adapter()
        trained = arrays_of(answer(holder, request(start)))
        counted = answer(holder, request(start, "m2", "evaluate")).content[wire.METRICS]
        releases.append((*(trained[n].tobytes() for n in trained), tuple(counted[wire.HISTOGRAM])))
    assert all(one != other for one, other in zip(*releases, strict=True))


def test_a_contracts_seed_sets_the_public_start_and_no_noise(opened, model, variant, model_for):
    contract = variant(model={"seed": 11})
    seeded = model_for(contract)
    noise = []
    for _ in range(2):
        holder = opened(contract=contract, own_model=seeded)
        trained = arrays_of(answer(holder, request(seeded.initial_adapter())))
        noise.append(trained["head.weight"] - seeded.initial_adapter()["head.weight"])
    assert (noise[0] != noise[1]).mean() > 0.9  # on a grid, where two may meet
    assert not np.array_equal(
        seeded.initial_adapter()["head.weight"], model.initial_adapter()["head.weight"]
    )


def test_a_holder_that_cannot_run_is_refused_when_it_is_opened(opened, variant):
    with pytest.raises(PrivacyError, match="must be at most"):
        opened(contract=variant(training={"rounds": 1000}))
    with pytest.raises(PrivacyError, match="allow-no-privacy"):
        opened(contract=variant(private=False))
    with pytest.raises(ShardError, match="no usable training user"):
        opened(0)


def test_an_unknown_size_class_is_refused(model, records):
    with pytest.raises(ContractError, match="size class 'huge'"):
        open_holder(
            "shop",
            model.contract,
            size_class="huge",
            ledger=Ledger.in_memory(),
            model=model,
            train_records=records(3),
            holdout_records=[],
        )


def test_a_holder_without_holdout_users_still_answers(opened, model):
    holder = opened(holdout=0)
    reply = answer(holder, request(model.initial_adapter(), kind="evaluate"))
    assert len(reply.content[wire.METRICS][wire.HISTOGRAM]) == 100


def test_examples_that_are_encoded_already_are_taken_as_they_are(model, records):
    encoded = Examples(model, model.contract, records(5))
    holder = open_holder(
        "shop",
        model.contract,
        size_class="small",
        ledger=Ledger.in_memory(),
        model=model,
        train_records=encoded,
        holdout_records=encoded,
    )
    assert holder.train is holder.holdout is encoded


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_damaged_cache_is_refused_charged_and_remembered(opened, model, tmp_path, kind, caplog):
    ledger = Ledger.in_memory()
    with Store(Cache(kind="file", folder=tmp_path)) as store:
        holder = opened(300, ledger=ledger, store=store)  # of 40, two steps may draw and read none
        start = model.initial_adapter()
        assert not refused(answer(holder, request(start, "m1", kind)))
        store.check()
        (file,) = tmp_path.iterdir()
        file.write_bytes(bytes(file.stat().st_size))
        assert refused(answer(holder, request(start, "m2", kind)))
        # Which rows a step reads depends on the data, so that the refusal is no free answer.
        assert len(accounts(ledger)) == 2
        assert refused(answer(holder, request(start, "m2", kind)))
        assert len(accounts(ledger)) == 2
        with pytest.raises(CacheError, match="was changed"):
            store.check()
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert str(store.damage) in told


def test_training_and_holdout_users_share_one_limit_which_is_told_once(
    opened, model, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "credit_client.app")
    whole = Store()
    opened(store=whole)
    assert (whole.kept, whole.late) == (70, 0)
    caplog.clear()
    store = Store(Cache(kind="file", folder=tmp_path, limit=whole.bytes // 2))
    holder = opened(store=store)
    assert store.bytes <= store.cache.limit
    assert store.kept + store.late == 70
    (said,) = caplog.messages
    assert f"of {store.kept} users kept in {tmp_path}" in said
    assert f"of {store.late} users run anew" in said
    adapter = model.initial_adapter()
    assert np.array_equal(
        score(model, holder.holdout, adapter), score(model, opened().holdout, adapter)
    )
    store.close()
