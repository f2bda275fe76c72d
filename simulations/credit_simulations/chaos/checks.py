"""What a run under faults must not have done, held against witnesses outside the two commands.

The witnesses: what the recorder at the coordinator's door saw go out and come in (`door`), the
lines that the processes said, and the holders' ledger files as they lie there afterwards. ε is
computed anew from events, and each round's adapter from the answers that came.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_client.chain import Entry
from credit_common.accountant import epsilon
from credit_common.errors import WireError
from credit_common.events import Event
from credit_common.privacy import MechanismPlan
from credit_common.wire import unpack

Line = Mapping[str, Any]
"""Of the recorder: `life`, `what` ("asked", "came" or "counted"), `id`, `node`; for "asked" also
`kind`, `round`, `arrays`, for the others `outcome` and `payload`. Digests are SHA-256, in hex."""
Adapter = Mapping[str, NDArray[np.float32]]
SENT = ("adapter", "histogram")
SLACK = 1e-9
"""Of ε, which is computed twice by the same arithmetic in another order of events."""
CLOSE = 1e-5
"""Of a mean, relative to its largest number: float32's rounding, some times over."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """How often each thing happened that must not; see the functions for what each one means."""

    rounds_counted_twice: int = 0
    rounds_lost: int = 0
    rounds_unexplained: int = 0
    ledger_below_truth: int = 0
    epsilon_above_ledger: int = 0
    epsilon_fell: int = 0
    charged_without_message: int = 0
    sent_without_charge: int = 0
    replies_differing: int = 0

    def __add__(self, other: "Findings") -> "Findings":
        return Findings(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Findings)}
        )

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, f.name) for f in fields(Findings))


def check_rounds(
    told: Sequence[int], resumed: Sequence[int], door: Sequence[Line], rounds: int, least: int
) -> Findings:
    """Whether each round was counted once.

    A round is counted twice if it is told twice, or its training is asked for from two different
    adapters (so that one of them has it in already, or lacks the one before), or an answer counts
    to two requests of one holder in it. It is lost if it was never asked for, or fewer holders than
    the minimum had an answer counted, or neither it was told nor a later start knew of it.

    Args:
        told: Rounds that the coordinator told, over all its lives.
        resumed: Rounds that were done by the word of each start with --resume, and of the end.
        door: The recorder's lines.
        rounds: Of the contract.
        least: Fewest holders of a round.
    """
    bases: dict[int, set[str]] = defaultdict(set)
    ids: dict[int, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    round_of = {}
    for line in door:
        if line["what"] == "asked" and line["kind"] == "train":
            bases[line["round"]].add(line["arrays"])
            round_of[line["id"]] = line["round"]
    for line in door:
        adapter = line["what"] == "counted" and line["outcome"] == "adapter"
        if adapter and line["id"] in round_of:
            ids[round_of[line["id"]]][line["node"]].add(line["id"])
    known = max(resumed, default=0)
    twice = lost = 0
    for number in range(1, rounds + 1):
        repeated = any(len(own) > 1 for own in ids[number].values())
        twice += told.count(number) > 1 or len(bases[number]) > 1 or repeated
        untold = number not in told and number > known
        lost += untold or not bases[number] or len(ids[number]) < least
    return Findings(rounds_counted_twice=twice, rounds_lost=lost)


def check_means(
    door: Sequence[Line],
    arrays: Mapping[str, bytes],
    weights: Mapping[int, float],
    *,
    rounds: int,
    least: int,
    average: float,
) -> Findings:
    """Whether each round's adapter is the mean of answers that came to that round, each once.

    It is compared with the next round's request, the last round's with the running average that is
    asked about at its evaluation. For plain FedAvg of adapters in float32.

    Args:
        door: The recorder's lines.
        arrays: Digest -> bytes of what was asked and what came.
        weights: Public weight by node id.
        rounds: Of the contract.
        least: Fewest holders of a round.
        average: Weight of the past in the running average.
    """
    asked = {}
    lives: dict[int, int] = {}
    for line in door:
        if line["what"] == "asked" and line["kind"] == "train":
            asked[line["round"]] = line["arrays"]
            lives[line["round"]] = line["life"]  # the last one that asked is the one that counted
    evaluated = {
        line["round"]: line["arrays"]
        for line in door
        if line["what"] == "asked" and line["kind"] == "evaluate"
    }
    globals_ = {number: unpack(arrays[digest]) for number, digest in asked.items()}
    released: dict[str, NDArray[np.float64]] = {}
    unexplained = 0
    for number in range(1, rounds + 1):
        if number not in globals_:
            unexplained += 1
            continue
        after: Mapping[str, NDArray[Any]] | None = globals_.get(number + 1)
        if after is None and number in evaluated:
            end = unpack(arrays[evaluated[number]])
            past = average if released else 0.0
            after = {n: (end[n] - past * released.get(n, 0.0)) / (1 - past) for n in end}
        if after is None:
            unexplained += 1
            continue
        came = {
            (line["node"], line["payload"])
            for line in door
            if line["what"] == "counted"
            and line["outcome"] == "adapter"
            and line["life"] == lives[number]
            and f"-{number}-train-" in line["id"]
        }
        usable = [
            (weights[node], adapter)
            for node, payload in sorted(came)
            if (adapter := _usable(arrays[payload], globals_[number])) is not None
        ]
        unexplained += not _is_some_mean(after, usable, least)
        past = average if released else 0.0
        released = {n: past * released.get(n, 0.0) + (1 - past) * after[n] for n in after}
    return Findings(rounds_unexplained=unexplained)


def _usable(payload: bytes, base: Adapter) -> Adapter | None:
    """An answer's adapter, if it has the form of the one that was asked; a liar's may not."""
    try:
        found = unpack(payload)
    except WireError:
        return None
    same = {n: a.shape for n, a in found.items()} == {n: a.shape for n, a in base.items()}
    return found if same and all(np.abs(a).max() < 1e6 for a in found.values()) else None


def _is_some_mean(
    after: Mapping[str, NDArray[Any]], answers: Sequence[tuple[float, Adapter]], least: int
) -> bool:
    """Whether some of the answers have this mean: which ones counted is not known from outside."""
    flat = [(w, np.concatenate([a[n].ravel() for n in sorted(a)])) for w, a in answers]
    wanted = np.concatenate([np.asarray(after[n], np.float64).ravel() for n in sorted(after)])
    bound = CLOSE * max(1.0, float(np.abs(wanted).max()))
    for size in range(len(flat), least - 1, -1):
        for chosen in combinations(flat, size):
            total = sum(weight for weight, _ in chosen)
            mean = sum(weight / total * vector.astype(np.float64) for weight, vector in chosen)
            if np.abs(mean - wanted).max() <= bound:
                return True
    return False


def check_replies(door: Iterable[Line], nodes: Iterable[int]) -> Findings:
    """How many messages of these holders were answered with two different contents."""
    honest = set(nodes)
    contents: dict[str, set[str]] = defaultdict(set)
    for line in door:
        if line["what"] == "came" and line["node"] in honest and line["outcome"] in SENT:
            contents[line["id"]].add(line["payload"])
    return Findings(replies_differing=sum(len(own) > 1 for own in contents.values()))


def check_ledger(
    entries: Sequence[Entry],
    said: float,
    claims: Sequence[float],
    door: Iterable[Line],
    node: int,
    plan: MechanismPlan,
) -> Findings:
    """Hold one holder's ledger against what came from it.

    Its ε is below the truth if it is less than what the distinct answers that came have spent, or
    than what its own entries add up to. A claim is above it if it is more than the entries add up
    to. A charge is without a message if the coordinator never asked with its id, and a message
    without a charge if no entry has its id and its bytes' digest.

    Args:
        entries: Of the ledger, as they lie on the disk.
        said: ε by the ledger's own word.
        claims: ε that the holder told while it ran, in their order.
        door: The recorder's lines.
        node: Of the holder.
        plan: Of its size class; private.
    """
    asked = set()
    left: set[tuple[str, str, str]] = set()
    for line in door:
        if line["node"] != node:
            continue
        if line["what"] == "asked":
            asked.add(line["id"])
        elif line["what"] == "came" and line["outcome"] in SENT:
            left.add((line["outcome"], line["id"], line["payload"]))
    charged = [entry for entry in entries if entry.message_id is not None]
    listed = {(entry.message_id, entry.reply_digest) for entry in charged}
    truth = _spent(plan, (outcome for outcome, _, _ in left))
    kinds = {"train": "adapter", "holdout": "histogram"}
    entered = _spent(plan, (kinds[entry.account] for entry in charged))
    return Findings(
        ledger_below_truth=int(entered < truth - SLACK or said < entered - SLACK),
        epsilon_above_ledger=int(any(claim > entered + SLACK for claim in (*claims, said))),
        epsilon_fell=sum(b < a - SLACK for a, b in pairwise(claims)),
        charged_without_message=sum(entry.message_id not in asked for entry in charged),
        sent_without_charge=sum((id_, payload) not in listed for _, id_, payload in left),
    )


def _spent(plan: MechanismPlan, outcomes: Iterable[str]) -> float:
    """ε of any user by the contract's own figures: the two accounts' users are disjoint."""
    events: dict[str, list[Event]] = {kind: [] for kind in SENT}
    made = {"adapter": plan.round_event(), "histogram": plan.evaluation_event()}
    for outcome in outcomes:
        event = made[outcome]
        assert event is not None  # the plan is private
        events[outcome].append(event)
    return max(epsilon(own, plan.delta) for own in events.values())
