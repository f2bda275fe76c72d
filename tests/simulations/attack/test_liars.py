"""What each liar sends, beside what the honest holder of the same draws would have sent."""

import dataclasses

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from credit_client.app import holder_app, open_holder
from credit_client.ledger import Ledger
from credit_client.training.examples import Examples
from credit_client.training.randomness import SeededRandom
from credit_common.contract import parse_contract
from credit_common.errors import CreditError, WireError
from credit_common.metrics import auc_exact
from credit_common.model import CreditModel
from credit_common.privacy import mechanism_plan
from credit_common.upload import decode
from credit_common.wire import (
    ARRAYS,
    CONFIG,
    ROUND,
    SERVER_NODE,
    array_record,
    empty_context,
    set_identity,
    set_message_id,
    uploaded,
)
from credit_server.quarantine import Quarantine
from credit_simulations.attack.liars import ATTACKS, SCALE, Liars
from credit_simulations.attack.stock import stock_app
from credit_simulations.federation import Party, holdout_scores, simulate


@pytest.fixture(scope="module")
def wide(federation_file):
    """The small contract's wide part alone; with a budget, or without."""

    def make(private=False, **training):
        contract = parse_contract(federation_file(private=private, training=training))
        return contract.training_only("wide")

    return make


@pytest.fixture(scope="module")
def make_holder(records):
    def make(contract, seed=0, name="a", model=None):
        model = model or CreditModel(contract, None)
        plan, private = mechanism_plan(contract, "small"), contract.privacy.private
        return open_holder(
            name,
            contract,
            size_class="small",
            ledger=Ledger.in_memory(),
            model=model,
            train_records=Examples(model, contract, records(200, seed=seed)),
            holdout_records=Examples(model, contract, records(20, seed=seed)),
            allow_no_privacy=not private,
            source=None if private else SeededRandom(seed, plan),
        )

    return make


def ask(app, base, round_=1, node=2):
    """The reply of an app to a request for training."""
    set_identity(1, SERVER_NODE)
    content = {ARRAYS: array_record(base), CONFIG: ConfigRecord({ROUND: round_})}
    message = Message(RecordDict(content), dst_node_id=node, message_type="train")
    set_message_id(message, f"{node}-{round_}")
    return app(message, empty_context(1, node))


def adapter_of(reply, base, kind="float32"):
    return decode(kind, uploaded(reply.content[ARRAYS]), base)


def start(contract, seed=1):
    draw = np.random.default_rng(seed)
    shapes = CreditModel(contract, None).schema()
    return {n: draw.normal(0, 0.1, shape).astype(np.float32) for n, shape in shapes.items()}


def lied(attack, holder, base, round_=1):
    liars = Liars(attack, frozenset({holder.name}))
    return adapter_of(ask(liars.wrap(holder, holder_app(holder)), base, round_), base)


def test_who_does_not_lie_keeps_its_own_app(make_holder, wide):
    holder = make_holder(wide())
    own = holder_app(holder)
    assert Liars("scale", frozenset({"b"})).wrap(holder, own) is own


def test_an_unknown_attack_is_refused():
    with pytest.raises(CreditError, match="attack = 'bribe': must be one of sign_flip, scale"):
        Liars("bribe", frozenset())


@pytest.mark.parametrize(
    ("attack", "times"), [("sign_flip", -1), ("scale", SCALE), ("scaled_flip", -SCALE)]
)
def test_a_change_is_turned_round_or_lengthened(make_holder, wide, attack, times):
    contract = wide()
    base = start(contract)
    honest = adapter_of(ask(holder_app(make_holder(contract)), base), base)
    lie = lied(attack, make_holder(contract), base)
    change = honest["wide.weight"] - base["wide.weight"]
    assert np.abs(change).max() > 1e-3
    np.testing.assert_allclose(
        lie["wide.weight"] - base["wide.weight"], times * change, rtol=1e-3, atol=1e-5
    )


def test_a_free_rider_sends_what_it_was_sent(make_holder, wide):
    contract = wide()
    base = start(contract)
    lie = lied("free_ride", make_holder(contract), base)
    np.testing.assert_array_equal(lie["wide.weight"], base["wide.weight"])


def test_turned_labels_move_the_other_way(make_holder, wide):
    contract = wide(steps=30)
    base = {"wide.weight": np.zeros_like(start(contract)["wide.weight"])}
    holder = make_holder(contract)
    honest = adapter_of(ask(holder_app(make_holder(contract)), base), base)["wide.weight"]
    labels = holder.train.labels.copy()
    lie = lied("label_flip", holder, base)["wide.weight"]
    np.testing.assert_array_equal(holder.train.labels, labels)  # its own data stay what they are
    scores = [weights[0] @ holder.train.wide.T for weights in (honest, lie)]
    assert auc_exact(scores[0], labels) > 0.7
    assert auc_exact(scores[1], labels) < 0.3


def test_a_stale_liar_trains_from_the_first_round(make_holder, wide):
    contract = wide()
    first, later = start(contract, 1), start(contract, 2)
    holder = make_holder(contract)
    app = Liars("stale", frozenset({"a"})).wrap(holder, holder_app(holder))
    ask(app, first)
    second = adapter_of(ask(app, later, 2), later)["wide.weight"]
    assert np.linalg.norm(second - first["wide.weight"]) < 0.5
    assert np.linalg.norm(second - later["wide.weight"]) > 0.5


def test_alie_sends_one_change_by_all_liars_anew_each_round(make_holder, wide):
    contract = wide()
    base = start(contract)
    liars = Liars("alie", frozenset({"a", "b"}))
    holders = [make_holder(contract, seed, name) for seed, name in enumerate("ab")]
    apps = [liars.wrap(holder, holder_app(holder)) for holder in holders]
    one, other = (adapter_of(ask(app, base, 1, 2 + i), base) for i, app in enumerate(apps))
    np.testing.assert_array_equal(one["wide.weight"], other["wide.weight"])
    again = adapter_of(ask(apps[0], base, 2), base)
    assert not np.array_equal(one["wide.weight"], again["wide.weight"])


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_a_random_change_is_as_long_as_the_public_bound_lets_through(make_holder, wide, kind):
    contract = wide(private=True, upload=kind)
    base, holder = start(contract), make_holder(contract)
    app = Liars("random", frozenset({"a"})).wrap(holder, holder_app(holder))
    reply = ask(app, base)
    quarantine = Quarantine(contract, {n: own.shape for n, own in base.items()})
    adapter, _ = quarantine.admit(base, reply)
    change = np.linalg.norm(adapter["wide.weight"] - base["wide.weight"])
    twice = {n: (base[n] + 2 * (adapter[n] - base[n])).astype(np.float32) for n in base}
    plain = dataclasses.replace(
        contract, training=dataclasses.replace(contract.training, upload="float32")
    )
    with pytest.raises(WireError, match="larger than an honest"):
        Quarantine(plain, {n: own.shape for n, own in base.items()}).admit(
            base, _like(reply, twice)
        )
    assert change > 1


def _like(reply, adapter):
    content = RecordDict(dict(reply.content))
    content[ARRAYS] = array_record(adapter)
    asked = Message(RecordDict(), dst_node_id=2, message_type="train")
    return Message(content, reply_to=asked)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_what_is_no_number_is_set_aside_in_every_encoding(make_holder, wide, kind):
    contract = wide(upload=kind)
    base, holder = start(contract), make_holder(contract)
    app = Liars("nan", frozenset({"a"})).wrap(holder, holder_app(holder))
    with pytest.raises(WireError) as error:
        Quarantine(contract).admit(base, ask(app, base))
    assert error.value.reason == "not-finite"


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_trimmed_mean_bears_one_liar_of_five_where_the_stock_strategy_may_break(
    wide, records, tmp_path, attack
):
    contract = wide(steps=5, rounds=4)
    model = CreditModel(contract, None)
    encoded = [Examples(model, contract, records(150, seed=i)) for i in range(10)]
    parties = [
        Party(name=name, size_class="small", train=encoded[i], holdout=encoded[5 + i])
        for i, name in enumerate("abcde")
    ]
    labels = np.concatenate([party.holdout.labels for party in parties])

    def auc(aggregation, liars):
        training = dataclasses.replace(contract.training, aggregation="mean", byzantine=0)
        if aggregation == "trimmed_mean":
            training = dataclasses.replace(training, aggregation=aggregation, byzantine=1)
        own = dataclasses.replace(
            contract,
            training=training,
            federation=dataclasses.replace(contract.federation, min_holders=3),
        )
        outcome = simulate(
            own,
            parties,
            model,
            ledgers=tmp_path,
            allow_no_privacy=True,
            wrap=liars and liars.wrap,
            serve=stock_app if aggregation == "stock" else None,
        )
        if not np.isfinite(outcome.adapter["wide.weight"]).all():
            return None
        scores = holdout_scores(model, parties, outcome.adapter)
        return auc_exact(np.concatenate([scores[n][:, 0] for n in sorted(scores)]), labels)

    clean = auc("trimmed_mean", None)
    assert clean > 0.8
    assert auc("trimmed_mean", Liars(attack, frozenset({"c"}))) > clean - 0.02
    stock = auc("stock", Liars(attack, frozenset({"c"})))
    if attack == "nan":
        assert stock is None
    elif attack == "scaled_flip":
        assert stock < 0.5
    else:
        assert stock is not None
