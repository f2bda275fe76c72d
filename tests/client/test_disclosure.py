import dataclasses
import math
import re

import numpy as np
import pytest

from credit_client.disclosure import HEAD, ledger_outlook, never_sent, schedule_spend, sendings
from credit_client.ledger import Ledger
from credit_common import federation_pb2 as pb
from credit_common.accountant import epsilon
from credit_common.evaluation import count_users
from credit_common.groups import count_all
from credit_common.privacy import mechanism_plan
from credit_common.statistics import statistics_shapes
from credit_common.text import wide_width
from credit_common.upload import blank_upload
from credit_common.wire import pack, unpack_statistics

EASY = {"budget_epsilon": 50.0, "delta": 1e-5, "request_digest": "", "reply": b""}


@pytest.fixture
def plan(contract):
    return mechanism_plan(contract, "small")


def of(contract):
    plan = mechanism_plan(contract, "small")
    return {sending.what: sending for sending in sendings(contract, plan)}


# What leaves


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize(
    "model",
    [{}, {"factors": "ffa", "layers": 2}, {"targets": ("value",), "train": ("lora", "head")},
     {"train": ("head", "wide")}, {"train": ("wide",)}, {"head_bias": False}],
)  # fmt: skip
def test_the_arrays_that_are_told_are_those_of_the_models_schema(
    variant, model_for, task, kind, model
):
    contract = variant(model=model, task=task[kind])
    schema = model_for(contract).schema()
    told = {}
    for line in of(contract)["training answer"].contains:
        if found := re.match(r"(\w+): (\d+) arrays?,", line):
            told[found[1]] = int(found[2])
    groups = [name.split(".")[0] for name in schema]
    assert told == {group: groups.count(group) for group in groups}
    if "wide" in contract.model.train:
        size = 4 * math.prod(schema["wide.weight"])
        assert f" {size:,} bytes" in of(contract)["training answer"].contains[-1]
        assert f" {contract.task.outputs} x {wide_width(contract)} " in str(of(contract))


@pytest.mark.parametrize("upload", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["binary", "multiclass"])
@pytest.mark.parametrize(
    "model",
    [{}, {"factors": "ffa", "layers": 2}, {"targets": ("value",), "train": ("lora", "head")},
     {"train": ("head", "wide")}, {"train": ("wide",)}, {"rank": 3}, {"head_bias": False}],
)  # fmt: skip
def test_a_training_answer_has_the_size_of_the_models_upload(
    variant, model_for, task, kind, model, upload
):
    contract = variant(model=model, task=task[kind], training={"upload": upload})
    sent = blank_upload(upload, model_for(contract).schema())
    assert of(contract)["training answer"].bytes == sum(a.nbytes for a in sent.values())


@pytest.mark.parametrize("upload", ["bfloat16", "int8"])
def test_rounded_changes_are_told_as_such_with_their_own_size(variant, model_for, upload):
    contract = variant(model={"train": ("wide",)}, training={"upload": upload})
    shapes = {name: a.shape for name, a in model_for(contract).initial_adapter().items()}
    told = of(contract)["training answer"]
    sent = sum(a.nbytes for a in blank_upload(upload, shapes).values())
    assert told.bytes == sent < 4 * wide_width(contract)
    assert f" {sent:,} bytes" in told.contains[-2]
    assert f"rounded to {upload}" in told.contains[-1]
    plain = of(variant(model={"train": ("wide",)}))["training answer"]
    assert told.protection == plain.protection  # rounding protects nobody, and costs nothing
    assert "rounded" not in str(plain)


def test_a_hubs_backbone_leaves_the_size_open(variant):
    hub = {"backbone": "someone/bert-on-a-hub", "backbone_sha256": "0" * 64}
    assert of(variant(model=hub))["training answer"].bytes is None
    wide = of(variant(model={**hub, "train": ("wide",)}))["training answer"]
    assert wide.bytes > 0  # no text is read


def test_an_evaluation_answer_has_the_size_of_its_counts(contract):
    scores, labels = np.zeros((3, 1), np.float32), np.zeros(3, np.float32)
    counts = count_users(contract, scores, labels).astype(np.float64)
    assert of(contract)["evaluation answer"].bytes == counts.nbytes


def test_a_holder_can_send_nothing_that_is_not_told(contract, federated):
    """A field that is added to the wire has to be told too."""
    assert set(pb.Hello.DESCRIPTOR.fields_by_name) == {"wire_versions", "contract_digest", "head"}
    outcomes = {"adapter", "histogram", "refused", "statistics"}
    assert set(pb.Reply.DESCRIPTOR.fields_by_name) == {"message_id", "head", *outcomes}
    with_head = {what for what, s in of(contract).items() if HEAD in ", ".join(s.contains)}
    assert with_head == {"greeting", "training answer", "evaluation answer", "refusal"}
    assert not pb.Refused.DESCRIPTOR.fields
    assert list(of(contract)) == [
        "certificate", "greeting", "heartbeat", "training answer", "evaluation answer", "refusal",
    ]  # fmt: skip
    assert set(of(federated)) - set(of(contract)) == {"statistics answer"}


def test_statistics_are_told_with_their_fields_size_and_sensitivity(federated):
    told = of(federated)["statistics answer"]
    payload = pack({name: np.zeros(n) for name, n in statistics_shapes(federated).items()})
    assert told.times == 1
    assert told.bytes == sum(a.nbytes for a in unpack_statistics(payload).values()) == 241 * 8
    assert "age, income" in told.contains[2]
    assert "sqrt(2)" in told.protection
    assert "sigma = 8 users" in told.protection
    assert of(federated.without_privacy())["statistics answer"].protection.startswith("NONE")


def test_counts_by_groups_are_told_with_their_size_and_sensitivity(grouped, contract):
    told = of(grouped)["evaluation answer"]
    scores, labels = np.zeros((3, 1), np.float32), np.zeros(3, np.float32)
    counts = count_all(grouped, scores, labels, np.zeros((3, 1), np.int64), 3)
    assert told.bytes == counts.astype(np.float64).nbytes == 2 * 62 * 8
    assert "the last time also 2 x 12 such counts" in told.contains[-1]
    assert told.contains[-1].endswith("for sex")
    assert "one for each of 1 protected field (sensitivity sqrt(2))" in told.protection
    assert "sqrt" not in of(contract)["evaluation answer"].protection


def test_the_outlook_has_groups_in_the_last_evaluation_alone(grouped):
    often = dataclasses.replace(
        grouped, evaluation=dataclasses.replace(grouped.evaluation, every=1, noise_multiplier=9.0)
    )
    plan = mechanism_plan(often, "small")
    with Ledger.in_memory() as ledger:
        split(ledger, often)
        charge(ledger, plan, 1, 1, often.digest)
        outlook = ledger_outlook(often, plan, ledger)
        assert (outlook.rounds, outlook.evaluations, outlook.statistics) == (1, 1, 0)
        rest = [plan.evaluation_event(), plan.evaluation_event(), plan.evaluation_event(1)]
        expected = pytest.approx(epsilon(rest, plan.delta))
        assert outlook.rest_to_come.holdout == expected == plan.holdout_epsilon()
        assert schedule_spend(plan)[0].holdout == expected
        # Charged for the last one, it is no statistics round.
        ledger.charge(
            "holdout", plan.evaluation_event(1), contract_digest=often.digest, message_id="last",
            request_digest="ab" * 32, reply=b"x", budget_epsilon=50.0, delta=plan.delta,
        )  # fmt: skip
        after = ledger_outlook(often, plan, ledger)
        assert (after.evaluations, after.statistics) == (2, 0)
        assert after.rest_to_come.holdout == expected  # the last is not still to come
        # A plain one too many does not make the dearer one go away, which has been sent here.
        charge(ledger, plan, 0, 3, often.digest)
        spent = ledger_outlook(often, plan, ledger)
        assert spent.rest_to_come.holdout == spent.spent.holdout


def test_exact_counts_by_groups_may_tell_of_a_single_user(grouped, contract):
    open_ = [mechanism_plan(each.without_privacy(), "small") for each in (grouped, contract)]
    told = [" ".join(never_sent(plan)) for plan in open_]
    assert ["protected field" in words for words in told] == [False, True]
    assert "protected field" in " ".join(never_sent(mechanism_plan(grouped, "small")))


def test_messages_are_counted_by_the_contracts_schedule(contract, plan):
    counted = {what: s.times for what, s in of(contract).items() if s.times is not None}
    assert counted == {"training answer": plan.rounds, "evaluation answer": plan.evaluations}
    often = dataclasses.replace(
        contract, evaluation=dataclasses.replace(contract.evaluation, every=1)
    )
    assert of(often)["evaluation answer"].times == contract.training.rounds
    assert of(often)["evaluation answer"].when == "each round"


def test_the_protection_names_every_figure_of_the_mechanism(contract, plan):
    step = of(contract)["training answer"].protection
    for figure in (f"{plan.steps} steps", f"q = {plan.sampling_rate:g}", f"C = {plan.clip_norm:g}",
                   f"sigma = {plan.noise_multiplier:g}"):  # fmt: skip
        assert figure in step
    sigma = plan.evaluation_noise_multiplier
    assert f"sigma = {sigma:g} users" in of(contract)["evaluation answer"].protection


def test_without_privacy_no_protection_is_claimed_and_exact_counts_are_owned_up_to(contract, plan):
    bare = contract.without_privacy()
    for what in ("training answer", "evaluation answer"):
        assert of(bare)[what].protection.startswith("NONE")
        assert not of(contract)[what].protection.startswith("NONE")
    lost = set(never_sent(plan)) - set(never_sent(mechanism_plan(bare, "small")))
    assert lost == {"numbers of users or rows without noise"}


# What it spends


def charge(ledger, plan, rounds, evaluations, contract_digest, statistics=0):
    for account, event, n in (
        ("train", plan.round_event(), rounds),
        ("holdout", plan.evaluation_event(), evaluations),
        ("train", plan.statistics_event(), statistics),
    ):
        for _ in range(n):
            name = str(len(ledger.entries()))
            ledger.charge(account, event, message_id=name, contract_digest=contract_digest, **EASY)


def split(ledger, contract):
    ledger.bind_split(contract.split.salt, contract.split.holdout, contract.record.user)


PASTS = {
    "nothing yet": lambda ledger, contract, plan: None,
    "the same split": lambda ledger, contract, plan: (
        split(ledger, contract),
        charge(ledger, plan, 2, 1, "another"),
    ),
    "another split": lambda ledger, contract, plan: (
        ledger.bind_split("another salt", 0.1),
        charge(ledger, plan, 2, 1, "another"),
    ),
    "another fraction, never charged": lambda ledger, contract, plan: ledger.bind_split(
        contract.split.salt, 0.1
    ),
    "no split": lambda ledger, contract, plan: charge(ledger, plan, 1, 2, "another"),
    "two splits": lambda ledger, contract, plan: (
        ledger.bind_split("another salt", 0.1),
        split(ledger, contract),
    ),
}


@pytest.mark.parametrize("past", PASTS)
def test_the_outlook_is_what_a_ledger_says_at_the_end_of_the_schedule(contract, plan, past):
    with Ledger.in_memory() as ledger:
        PASTS[past](ledger, contract, plan)
        outlook = ledger_outlook(contract, plan, ledger)
        assert outlook.spent.any == ledger.epsilon_overall(plan.delta)
        split(ledger, contract)  # as the gate does at its start
        charge(ledger, plan, plan.rounds, plan.evaluations, contract.digest)
        assert outlook.accounts_add == ledger.accounts_add
        for foretold in (outlook.all_to_come, outlook.rest_to_come):
            assert foretold.train == pytest.approx(ledger.epsilon("train", plan.delta))
            assert foretold.holdout == pytest.approx(ledger.epsilon("holdout", plan.delta))
            assert foretold.any == pytest.approx(ledger.epsilon_overall(plan.delta))


def test_rounds_that_this_contract_was_charged_for_are_not_still_to_come(contract, plan):
    with Ledger.in_memory() as ledger:
        split(ledger, contract)
        charge(ledger, plan, 1, 0, "another")
        charge(ledger, plan, 2, 1, contract.digest)
        outlook = ledger_outlook(contract, plan, ledger)
        assert (outlook.rounds, outlook.evaluations) == (2, 1)
        charge(ledger, plan, plan.rounds - 2, plan.evaluations - 1, contract.digest)
        assert outlook.rest_to_come.any == pytest.approx(ledger.epsilon_overall(plan.delta))
        assert outlook.rest_to_come.any < outlook.all_to_come.any
        done = ledger_outlook(contract, plan, ledger)
        assert done.rest_to_come == done.spent


@pytest.mark.parametrize("charged", [0, 1, 2])
def test_statistics_are_counted_apart_from_rounds(federated, charged):
    plan = mechanism_plan(federated, "small")
    with Ledger.in_memory() as ledger:
        split(ledger, federated)
        charge(ledger, plan, 1, 0, federated.digest, charged)
        outlook = ledger_outlook(federated, plan, ledger)
        assert (outlook.rounds, outlook.evaluations, outlook.statistics) == (1, 0, charged)
        left = max(1 - charged, 0)
        charge(ledger, plan, plan.rounds - 1, plan.evaluations, federated.digest, left)
        assert outlook.rest_to_come.train == pytest.approx(ledger.epsilon("train", plan.delta))


def test_the_schedules_spend_has_the_statistics(federated):
    plan = mechanism_plan(federated, "small")
    schedule, replace_one = schedule_spend(plan)
    with Ledger.in_memory() as ledger:
        split(ledger, federated)
        charge(ledger, plan, plan.rounds, plan.evaluations, federated.digest, 1)
        assert schedule.train == pytest.approx(ledger.epsilon("train", plan.delta))
        assert schedule.train == pytest.approx(plan.train_epsilon())
        assert replace_one == pytest.approx(ledger.epsilon_replace_one(plan.delta))


def test_a_contract_charged_beyond_its_schedule_has_nothing_to_come(contract, plan):
    with Ledger.in_memory() as ledger:
        split(ledger, contract)
        charge(ledger, plan, plan.rounds + 2, plan.evaluations + 1, contract.digest)
        outlook = ledger_outlook(contract, plan, ledger)
        assert outlook.rest_to_come == outlook.spent


def test_looking_at_a_ledger_writes_nothing(contract, plan, tmp_path):
    with Ledger.create(tmp_path / "own.ledger") as ledger:
        charge(ledger, plan, 1, 1, contract.digest)
        before = ledger.head
        ledger_outlook(contract, plan, ledger)
        assert ledger.head == before


@pytest.mark.parametrize("noise", [(1.0, 2.0), (0.5, 20.0), (20.0, 0.5)])
def test_the_schedules_spend_is_that_of_a_ledger_that_saw_it_all(contract, plan, noise):
    sigma, evaluation_sigma = noise  # either side may be the one that a changed user shows on
    plan = dataclasses.replace(
        plan, noise_multiplier=sigma, evaluation_noise_multiplier=evaluation_sigma
    )
    schedule, replace_one = schedule_spend(plan)
    with Ledger.in_memory() as ledger:
        split(ledger, contract)
        charge(ledger, plan, plan.rounds, plan.evaluations, contract.digest)
        assert schedule.any == pytest.approx(ledger.epsilon_overall(plan.delta))
        assert replace_one == pytest.approx(ledger.epsilon_replace_one(plan.delta))
    assert schedule.train == pytest.approx(plan.train_epsilon())
    assert schedule.holdout == pytest.approx(plan.holdout_epsilon())


def test_without_privacy_everything_is_infinite(contract):
    bare = contract.without_privacy()
    plan = mechanism_plan(bare, "small")
    schedule, replace_one = schedule_spend(plan)
    assert {schedule.train, schedule.holdout, schedule.any, replace_one} == {math.inf}
    with Ledger.in_memory() as ledger:
        outlook = ledger_outlook(bare, plan, ledger)
        assert outlook.spent.any == 0
        assert outlook.all_to_come.any == math.inf
        ledger.charge("train", None, message_id="1", contract_digest=bare.digest,
                      **{**EASY, "budget_epsilon": None})  # fmt: skip
        assert ledger_outlook(bare, plan, ledger).spent.train == math.inf
