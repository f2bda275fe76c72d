"""The checks of a run under faults: silent on what happened, loud on each false account of it."""

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest

from credit_client.chain import Entry, canonical, digest
from credit_common.accountant import epsilon
from credit_common.contract import Contract
from credit_common.events import event_to_json
from credit_common.privacy import MechanismPlan, mechanism_plan
from credit_common.wire import pack
from credit_simulations.chaos.checks import (
    Findings,
    check_ledger,
    check_means,
    check_replies,
    check_rounds,
)

ROUNDS, NODES, LIAR = 3, (2, 3, 4), 5
WEIGHTS = {2: 1.0, 3: 2.0, 4: 5.0, 5: 1.0}
AVERAGE = 0.5


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Story:
    """A run of three rounds as the door saw it: the coordinator died in the second one.

    One holder is late in round 2, and the liar's answers do not count.
    """

    def __init__(self) -> None:
        self.door: list[dict[str, Any]] = []
        self.arrays: dict[str, bytes] = {}
        draw = np.random.default_rng(1)
        base = {"w": np.zeros((2, 3), np.float32)}
        released = None
        for number in range(1, ROUNDS + 1):
            answers = {
                node: {"w": draw.standard_normal((2, 3)).astype(np.float32)} for node in NODES
            }
            late = 4 if number == 2 else None
            lives = (1, 2) if number == 2 else (1,) if number == 1 else (2,)
            for life in lives:
                self.ask(life, "train", number, base)
                for node in NODES:
                    if node != late and (life == lives[-1] or node == 2):
                        self.answer(life, "train", number, node, "adapter", pack(answers[node]))
            self.answer(lives[-1], "train", number, LIAR, "adapter", b"garbage")
            counted = [node for node in NODES if node != late]
            total = sum(WEIGHTS[node] for node in counted)
            mean = sum(WEIGHTS[n] / total * answers[n]["w"].astype(np.float64) for n in counted)
            base = {"w": mean.astype(np.float32)}
            released = mean if released is None else AVERAGE * (released + mean)
        assert released is not None
        self.ask(2, "evaluate", ROUNDS, {"w": released.astype(np.float32)})
        for node in NODES:
            self.answer(2, "evaluate", ROUNDS, node, "histogram", b"%d" % node)

    @staticmethod
    def id(kind: str, number: int, node: int) -> str:
        return f"run-{number}-{kind}-{node}-0"

    def ask(self, life: int, kind: str, number: int, arrays: dict[str, np.ndarray]) -> None:
        content = pack(arrays)
        self.arrays[sha(content)] = content
        for node in (*NODES, LIAR):
            self.door.append(
                {"life": life, "what": "asked", "id": self.id(kind, number, node), "node": node,
                 "kind": kind, "round": number, "arrays": sha(content)}
            )  # fmt: skip

    def answer(
        self, life: int, kind: str, number: int, node: int, outcome: str, content: bytes
    ) -> None:
        self.arrays[sha(content)] = content
        for what in ("came", "counted"):
            self.door.append(
                {"life": life, "what": what, "id": self.id(kind, number, node), "node": node,
                 "outcome": outcome, "payload": sha(content)}
            )  # fmt: skip

    def rounds(
        self, told: tuple[int, ...] = (1, 2, 3), resumed: tuple[int, ...] = (1,)
    ) -> Findings:
        return check_rounds(told, resumed, self.door, ROUNDS, 2)

    def means(self) -> Findings:
        return check_means(self.door, self.arrays, WEIGHTS, rounds=ROUNDS, least=2, average=AVERAGE)


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_run_that_went_on_after_a_crash_is_in_order(story: Story) -> None:
    assert story.rounds() == story.means() == check_replies(story.door, NODES) == Findings()
    assert story.rounds(told=(2, 3)).total == 0  # the first was kept before it could be told
    assert story.rounds(told=(1, 2), resumed=(1, 3)).total == 0


def test_a_round_that_is_told_twice_is_counted_twice(story: Story) -> None:
    assert story.rounds(told=(1, 2, 2, 3)) == Findings(rounds_counted_twice=1)


def test_a_round_that_is_asked_from_two_adapters_is_counted_twice(story: Story) -> None:
    story.ask(2, "train", 2, {"w": np.ones((2, 3), np.float32)})
    assert story.rounds() == Findings(rounds_counted_twice=1)


def test_an_answer_that_counts_to_two_requests_of_a_round_is_counted_twice(story: Story) -> None:
    again = {**story.door[0], "id": "another-1-train-2-0", "node": 2}
    story.door.append(again)
    counted = next(line for line in story.door if line["what"] == "counted" and line["node"] == 2)
    story.door.append({**counted, "id": again["id"]})
    assert story.rounds() == Findings(rounds_counted_twice=1)


def test_a_round_that_nobody_told_or_asked_for_is_lost(story: Story) -> None:
    assert story.rounds(told=(1, 3)) == Findings(rounds_lost=1)
    assert story.rounds(told=(1, 2), resumed=(1,)) == Findings(rounds_lost=1)
    story.door = [line for line in story.door if "-2-train-" not in line["id"]]
    assert story.rounds() == Findings(rounds_lost=1)


def test_a_round_of_too_few_is_lost(story: Story) -> None:
    story.door = [
        line
        for line in story.door
        if not (line["what"] == "counted" and "-3-train-" in line["id"] and line["node"] != 2)
    ]
    assert story.rounds() == Findings(rounds_lost=1)


def test_an_adapter_that_is_no_mean_of_answers_is_unexplained(story: Story) -> None:
    third = next(line for line in story.door if line["what"] == "asked" and line["round"] == ROUNDS)
    for wrong in ({"w": np.full((2, 3), 9, np.float32)}, {"w": np.zeros((2, 3), np.float32)}):
        story.arrays[third["arrays"]] = pack(wrong)
        assert story.means().rounds_unexplained >= 1


def test_an_answer_in_the_mean_twice_or_with_another_weight_is_unexplained(story: Story) -> None:
    found = check_means(
        story.door, story.arrays, {**WEIGHTS, 2: 2.0}, rounds=ROUNDS, least=2, average=AVERAGE
    )
    assert found.rounds_unexplained >= 2


def test_a_running_average_that_missed_a_round_is_unexplained(story: Story) -> None:
    found = check_means(
        story.door, story.arrays, WEIGHTS, rounds=ROUNDS, least=2, average=AVERAGE + 0.2
    )
    assert found.rounds_unexplained == 1  # the last, which is known by its average alone


def test_two_contents_for_one_message_are_told(story: Story) -> None:
    came = next(line for line in story.door if line["what"] == "came" and line["node"] == 3)
    story.door.append({**came, "payload": sha(b"fresh noise")})
    assert check_replies(story.door, NODES) == Findings(replies_differing=1)
    assert check_replies(story.door, (2, 4)).total == 0  # a liar's are nobody's concern


# -- ledgers


@pytest.fixture
def plan(contract: Contract) -> MechanismPlan:
    return mechanism_plan(contract, "small")


class Book:
    """The ledger of node 2 after the story, as it should be."""

    def __init__(self, story: Story, plan: MechanismPlan) -> None:
        self.story, self.plan = story, plan
        came = {
            line["id"]: (line["outcome"], line["payload"])
            for line in story.door
            if line["what"] == "came" and line["node"] == 2
        }
        self.entries = [
            self.entry(number, outcome, id_, payload)
            for number, (id_, (outcome, payload)) in enumerate(came.items(), start=1)
        ]

    def entry(self, number: int, outcome: str, id_: str, payload: str) -> Entry:
        train = outcome == "adapter"
        event = self.plan.round_event() if train else self.plan.evaluation_event()
        assert event is not None
        return Entry(
            sequence=number,
            time="2026-01-01T00:00:00+00:00",
            account="train" if train else "holdout",
            event=canonical(event_to_json(event)),
            contract_digest="c",
            message_id=id_,
            request_digest="r",
            reply_digest=payload,
            previous="p",
        )

    @property
    def true(self) -> float:
        event = self.plan.round_event()
        assert event is not None
        once = self.plan.evaluation_event()
        assert once is not None
        return max(epsilon([event] * 3, self.plan.delta), epsilon([once], self.plan.delta))

    def check(self, said: float | None = None, claims: tuple[float, ...] = ()) -> Findings:
        said = self.true if said is None else said
        return check_ledger(self.entries, said, claims, self.story.door, 2, self.plan)


@pytest.fixture
def book(story: Story, plan: MechanismPlan) -> Book:
    return Book(story, plan)


def test_a_true_ledger_is_in_order(book: Book) -> None:
    assert len(book.entries) == 4  # three adapters, one histogram; the repeated answer is one
    assert book.check(claims=(0.1, 0.1, book.true)) == Findings()


def test_a_charge_that_the_coordinator_never_saw_answered_is_in_order(book: Book) -> None:
    """It may have died with the answer: the ledger is then above the truth, never below."""
    book.story.door = [
        line
        for line in book.story.door
        if not (line["what"] in ("came", "counted") and "-3-train-2-" in line["id"])
    ]
    assert book.check() == Findings()


def test_a_forgotten_charge_is_below_the_truth(book: Book) -> None:
    forgotten = book.entries.pop(0)
    found = book.check()
    assert found.ledger_below_truth == 1
    assert found.sent_without_charge == 1
    assert found.epsilon_above_ledger == 1  # its word is more than its entries
    assert forgotten.account == "train"


def test_fresh_noise_for_a_charged_message_is_below_the_truth(book: Book) -> None:
    came = next(line for line in book.story.door if line["what"] == "came" and line["node"] == 2)
    book.story.door.append({**came, "payload": sha(b"fresh noise")})
    found = book.check()
    assert (found.ledger_below_truth, found.sent_without_charge) == (1, 1)


def test_a_word_below_the_entries_is_below_the_truth(book: Book) -> None:
    assert book.check(said=book.true - 0.01) == Findings(ledger_below_truth=1)


def test_a_claim_above_the_ledger_and_one_that_fell_are_told(book: Book) -> None:
    assert book.check(claims=(book.true + 0.01,)) == Findings(epsilon_above_ledger=1)
    assert book.check(claims=(0.3, 0.2, book.true)) == Findings(epsilon_fell=1)


def test_a_charge_for_what_was_never_asked_is_without_a_message(book: Book) -> None:
    book.entries[0] = dataclasses.replace(book.entries[0], message_id="never-asked")
    found = book.check()
    assert (found.charged_without_message, found.sent_without_charge) == (1, 1)


def test_an_entry_with_other_bytes_is_a_message_without_its_charge(book: Book) -> None:
    book.entries[0] = dataclasses.replace(book.entries[0], reply_digest=digest(b"other"))
    assert book.check() == Findings(sent_without_charge=1)


def test_findings_add_up_field_by_field() -> None:
    fields = [f.name for f in dataclasses.fields(Findings)]
    one = Findings(**{name: number for number, name in enumerate(fields, start=1)})
    both = one + one
    assert [getattr(both, name) for name in fields] == [2 * n for n in range(1, len(fields) + 1)]
    assert both.total == 2 * one.total == len(fields) * (len(fields) + 1)
