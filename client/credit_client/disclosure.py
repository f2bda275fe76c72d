"""What a contract makes a holder send, and what that spends: all that `--check` says of it.

Computed from public facts and the ledger alone, before anything is sent; of the backbone no more
than its configuration is read.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from credit_client.balance import ACCOUNTS, History
from credit_client.chain import Entry
from credit_client.ledger import Ledger
from credit_common.accountant import epsilon, epsilon_replace_one
from credit_common.backbone import width_of
from credit_common.contract import Contract
from credit_common.events import Event
from credit_common.groups import count_columns
from credit_common.privacy import MechanismPlan
from credit_common.sections import Upload
from credit_common.statistics import statistics_shapes
from credit_common.text import wide_width
from credit_common.upload import Shapes, upload_bytes

_PROTECTED = "the outcome or a protected field of a single user"
_NUMBERS = "numbers of users or rows without noise"
NEVER_SENT = (
    "rows, columns and texts of the shard",
    "user ids, and the keys that are made from them",
    _PROTECTED,
    "scores of single users, losses and other figures of training",
    "texts of errors, logs, entries of the ledger, this page",
    _NUMBERS,
)
COUNTED = {
    "binary": ("outcome (2) x score", "how many of them had the outcome"),
    "multiclass": (
        "wrong or right (2) x probability of the predicted class",
        "how many of them the model predicts rightly",
    ),
    "regression": ("too low or too high (2) x error", "how far off the model is for them"),
}
"""Kind of task -> the cells that users are counted in, and what their sums tell of all."""
_ENCODINGS: dict[Upload, tuple[str, ...]] = {
    "float32": (),
    "bfloat16": ("all of these as changes since the request, rounded to bfloat16",),
    "int8": ("all of these as changes since the request, rounded to int8, and their scales",),
}
REQUEST_ID = "id of the request"
HEAD = "signed head of the ledger (number of entries, blinded hash; at the end what it spent)"


@dataclass(frozen=True, kw_only=True)
class Sending:
    """One kind of message that leaves a holder.

    Attributes:
        when: When it is sent; `times` is how often by the contract's schedule, None without one.
        contains: All that it carries.
        protection: What hides a user's part in it.
        bytes: Size of the numbers in it; None where the backbone's width is not known.
    """

    what: str
    when: str
    times: int | None
    contains: tuple[str, ...]
    protection: str
    bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Spend:
    """ε under add/remove of a training user, of a hold-out user, and of any user at all."""

    train: float
    holdout: float
    any: float


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a ledger has spent, and would have spent at the end of a contract's schedule.

    Where entries were lost, what was spent is unknown; then every ε here is of the entries that are
    left, by which the ledger refuses.

    Attributes:
        spent: So far, under all contracts.
        rounds, evaluations, statistics: Charged so far under this very contract.
        all_to_come: As if all rounds, evaluations and statistics of it were still to come.
        rest_to_come: As if those were that this contract has not been charged for.
        accounts_add: Whether a user may be on both sides of the split: now, or as soon as this
            contract's salt and hold-out fraction are used.
        overrides: How often a person signed for lost entries.
    """

    spent: Spend
    rounds: int
    evaluations: int
    all_to_come: Spend
    rest_to_come: Spend
    accounts_add: bool
    statistics: int = 0
    overrides: int = 0


def sendings(contract: Contract, plan: MechanismPlan) -> tuple[Sending, ...]:
    """Every kind of message that leaves a holder, in the order in which they begin."""
    bins, every = contract.evaluation.bins, contract.evaluation.every
    step = counts = "NONE: without noise it can tell about single users"
    if plan.private:
        step = (
            f"sampled Gaussian mechanism, {plan.steps} steps a round: in each, a user takes part "
            f"with probability q = {plan.sampling_rate:g}, the user's share is cut to length "
            f"C = {plan.clip_norm:g}, and noise of standard deviation sigma x C, with "
            f"sigma = {plan.noise_multiplier:g}, is added to every number of the sum"
        )
        counts = (
            f"Gaussian mechanism: a user is counted in one cell{_of_groups(plan)}, and noise of "
            f"standard deviation sigma = {plan.evaluation_noise_multiplier:g} users is added to "
            "every cell"
        )
    counted = _statistics(contract, plan)
    shapes = _adapter_shapes(contract)
    encoding = _ENCODINGS[contract.training.upload]
    return (
        _bare("certificate", "on connecting", "federation, name, node id, size class, public key"),
        _bare("greeting", "on connecting", f"digest of the contract, protocol versions, {HEAD}"),
        _bare("heartbeat", "while connected", "nothing"),
        *counted,
        Sending(
            what="training answer",
            when="each round",
            times=plan.rounds,
            contains=(REQUEST_ID, HEAD, *_groups(contract), *encoding),
            protection=step,
            bytes=None if shapes is None else upload_bytes(contract.training.upload, shapes),
        ),
        Sending(
            what="evaluation answer",
            when="each round" if every == 1 else f"every {every} rounds, and the last",
            times=plan.evaluations,
            contains=(
                REQUEST_ID,
                HEAD,
                f"2 x {bins} counts of hold-out users, float64: {COUNTED[contract.task.kind][0]}",
                *_by_groups(contract),
            ),
            protection=counts,
            bytes=2 * count_columns(contract, contract.training.rounds) * 8,
        ),
        _bare("refusal", "instead of an answer", f"{REQUEST_ID}, {HEAD}; never why"),
    )


def never_sent(plan: MechanismPlan) -> tuple[str, ...]:
    """What no message carries.

    Without privacy, evaluations tell exact numbers of users; and where these are by groups, a cell
    of one user tells that user's group, outcome and decision.
    """
    if plan.private:
        return NEVER_SENT
    told = {_NUMBERS} | ({_PROTECTED} if plan.evaluation_groups else set())
    return tuple(what for what in NEVER_SENT if what not in told)


def ledger_outlook(
    contract: Contract, plan: MechanismPlan, ledger: Ledger, user_column: str | None = None
) -> Outlook:
    """What a holder's ledger says of taking part. Nothing is written to it.

    Args:
        user_column: Column of the shard that users are known by; None for the contract's name.

    Raises:
        PrivacyError: If the ledger cannot be read.
    """
    balance = ledger.balance
    past = {account: balance.history(account) for account in ACCOUNTS}
    grouped = plan.grouped_evaluations
    plain = plan.evaluations - grouped
    charged = Counter(_kind(e) for e in ledger.entries() if e.contract_digest == contract.digest)
    user = user_column or contract.record.user
    add = balance.would_add(contract.split.salt, contract.split.holdout, user)

    def after(rounds: int, plain: int, grouped: int, statistics: int) -> Spend:
        train, holdout = _schedule(plan, rounds, plain, grouped, statistics)
        return _spend(past["train"] + train, past["holdout"] + holdout, plan.delta, add=add)

    return Outlook(
        spent=Spend(
            train=ledger.epsilon("train", plan.delta),
            holdout=ledger.epsilon("holdout", plan.delta),
            any=ledger.epsilon_overall(plan.delta),
        ),
        rounds=charged["train"],
        evaluations=charged["holdout"] + charged["groups"],
        all_to_come=after(plan.rounds, plain, grouped, 1),
        rest_to_come=after(
            plan.rounds - charged["train"],
            plain - charged["holdout"],
            grouped - charged["groups"],
            1 - charged["statistics"],
        ),
        accounts_add=add,
        statistics=charged["statistics"],
        overrides=balance.signed,
    )


def _kind(entry: Entry) -> str:
    """What was answered: the account's name, or "statistics" or "groups"."""
    counted = '"kind":"field_histograms"' in entry.event  # canonical JSON has no spaces
    return {"train": "statistics", "holdout": "groups"}[entry.account] if counted else entry.account


def schedule_spend(plan: MechanismPlan) -> tuple[Spend, float]:
    """ε of a contract's whole schedule: under add/remove, and under a change of one user."""
    grouped = plan.grouped_evaluations
    train, holdout = _schedule(plan, plan.rounds, plan.evaluations - grouped, grouped, 1)
    changed = max(  # the user put in place of another may be on the other side of the split
        _epsilon(train + holdout, plan.delta),
        _epsilon(train, plan.delta, epsilon_replace_one),
        _epsilon(holdout, plan.delta, epsilon_replace_one),
    )
    return _spend(train, holdout, plan.delta, add=False), changed


def _schedule(
    plan: MechanismPlan, rounds: int, plain: int, grouped: int, statistics: int
) -> tuple[History, History]:
    """Events of both accounts; none where more were charged than the schedule has."""
    train: History = [plan.round_event()] * rounds
    if plan.statistics_fields:
        train = [plan.statistics_event()] * statistics + train
    return train, plan.evaluation_events(plain, grouped)


def _spend(train: History, holdout: History, delta: float, *, add: bool) -> Spend:
    one, other = _epsilon(train, delta), _epsilon(holdout, delta)
    both = _epsilon(train + holdout, delta) if add else max(one, other)
    return Spend(train=one, holdout=other, any=both)


def _epsilon(
    history: History, delta: float, of: Callable[[list[Event], float], float] = epsilon
) -> float:
    given = [event for event in history if event is not None]
    return of(given, delta) if len(given) == len(history) else math.inf


def _bare(what: str, when: str, contains: str) -> Sending:
    protection = "not needed: it tells nothing about users"
    return Sending(
        what=what, when=when, times=None, contains=(contains,), protection=protection, bytes=None
    )


def _of_groups(plan: MechanismPlan) -> str:
    number = plan.evaluation_groups
    if not number:
        return ""
    return (
        f", in the last evaluation also in one for each of {number} protected field"
        + ("s" if number > 1 else "")
        + f" (sensitivity sqrt({1 + number}))"
    )


def _by_groups(contract: Contract) -> tuple[str, ...]:
    """What the last evaluation counts beside the scores."""
    names = ", ".join(contract.evaluation.groups)
    columns = count_columns(contract, contract.training.rounds) - contract.evaluation.bins
    if not columns:
        return ()
    return (
        f"the last time also 2 x {columns} such counts: outcome (2) x code x decision (3), for "
        f"{names}",
    )


def _statistics(contract: Contract, plan: MechanismPlan) -> tuple[Sending, ...]:
    """The statistics answer, of a contract with federated edges."""
    shapes = statistics_shapes(contract)
    if not shapes:
        return ()
    fields, cells = len(shapes), sum(n for (n,) in shapes.values())
    names = ", ".join(f.name for f in contract.federated_fields)
    protection = "NONE: without noise it can tell about single users"
    if plan.private:
        protection = (
            f"Gaussian mechanism: a user is counted in at most one cell of each of {fields} fields "
            f"(sensitivity sqrt({fields})), and noise of standard deviation sigma = "
            f"{plan.statistics_noise_multiplier:g} users is added to every cell"
        )
    return (
        Sending(
            what="statistics answer",
            when="once, at first",
            times=1,
            contains=(
                REQUEST_ID,
                HEAD,
                f"{cells} counts of training users by value, float64, for bin edges: {names}",
            ),
            protection=protection,
            bytes=8 * cells,
        ),
    )


def _adapter_shapes(contract: Contract) -> Shapes | None:
    """Shapes of an adapter's arrays; its layers are numbered from 0, whatever the backbone's depth.

    None where the backbone's width is not known.
    """
    model, outputs = contract.model, contract.task.outputs
    width = width_of(model) if model.reads_text else 0
    if width is None:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    if "lora" in model.train:
        for where in itertools.product(range(model.layers), sorted(set(model.targets))):
            name = "lora.{}.{}".format(*where)
            shapes[f"{name}.B"] = (width, model.rank)
            if model.factors != "ffa":
                shapes[f"{name}.A"] = (model.rank, width)
    if "head" in model.train:
        shapes["head.weight"] = (outputs, width)
        if model.head_bias:
            shapes["head.bias"] = (outputs,)
    if "wide" in model.train:
        shapes["wide.weight"] = (outputs, wide_width(contract))
    return shapes


def _wide_bytes(contract: Contract) -> int:
    shapes = {"wide.weight": (contract.task.outputs, wide_width(contract))}
    return upload_bytes(contract.training.upload, shapes)


def _groups(contract: Contract) -> tuple[str, ...]:
    """The arrays of an adapter, as in the schema of `credit_common.model`."""
    model, outputs = contract.model, contract.task.outputs
    groups = []
    if "lora" in model.train:
        factors = ("B",) if model.factors == "ffa" else ("A", "B")
        arrays = model.layers * len(set(model.targets)) * len(factors)
        layers = "top layer" if model.layers == 1 else f"top {model.layers} layers"
        groups.append(
            f"lora: {arrays} arrays, changes of BERT's {layers} ({', '.join(model.targets)}; "
            f"{', '.join(factors)} of rank {model.rank})"
        )
    if "head" in model.train:
        scores = "the score" if outputs == 1 else f"{outputs} scores"
        own = "2 arrays" if model.head_bias else "1 array"
        groups.append(f"head: {own}, from what BERT reads to {scores}")
    if "wide" in model.train:
        groups.append(
            f"wide: 1 array, {outputs} x {wide_width(contract)} weights of numbers and "
            f"categories, {_wide_bytes(contract):,} bytes"
        )
    return tuple(groups)
