"""The preflight as a page for people and as JSON for programs."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from credit_client.disclosure import COUNTED, Spend, never_sent
from credit_client.preflight import Preflight
from credit_client.terminal import heading, paragraph, table, up, wrapped
from credit_common.contract import Contract
from credit_common.groups import group_columns
from credit_common.privacy import MechanismPlan

UNSEEN = ("identifier", "protected", "dropped")  # kinds that the model never gets

_COUNTED_FIELD = (
    " counted: never given to the model; the last evaluation counts users by it, with the noise of "
    "an evaluation answer."
)


def as_json(preflight: Preflight) -> dict[str, Any]:
    """The preflight for programs, by the names of its attributes.

    What is infinite is null, and so is what is unknown since the ledger lost entries.
    """
    text = json.dumps(dataclasses.asdict(preflight))
    plain: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
    del plain["contract"]
    if preflight.ledger is not None and preflight.ledger.overrides:
        plain["ledger"] |= dict.fromkeys(("spent", "all_to_come", "rest_to_come"))
    return {
        "format": 1,
        "federation": preflight.contract.federation.name,
        "contract_digest": preflight.contract.digest,
        **plain,
        "not_for_the_model": {kind: list(preflight.named(kind)) for kind in UNSEEN},
        "never_sent": list(never_sent(preflight.plan)),
    }


def show(preflight: Preflight, file: TextIO | None = None) -> None:
    """Write the page, to stdout by default. No line is longer than 100 characters."""
    out = sys.stdout if file is None else file
    for part in (_result, _shard, _fields, _unread, _sent, _told, _spent):
        for line in part(preflight):
            # Names of columns are the merchant's own: nothing in them may steer a terminal.
            out.write("".join(c if c.isprintable() else "?" for c in line).rstrip() + "\n")


def _result(preflight: Preflight) -> Iterator[str]:
    contract = preflight.contract
    yield f"CHECK BEFORE JOINING THE FEDERATION {contract.federation.name}"
    yield from paragraph(
        "Nothing of your shard was sent. This page was made on this machine from the contract, the "
        "shard and your ledger. It has counts of your users: keep it in the house."
    )
    yield from heading("RESULT")
    yield from paragraph(f"This client would {'NOT ' if preflight.refusals else ''}take part.")
    for reason in preflight.refusals:
        yield from paragraph(reason, mark="- ")
    if preflight.remarks:
        yield from paragraph("Worth a look, but no hindrance:")
    for remark in preflight.remarks:
        yield from paragraph(remark, mark="- ")
    yield from heading("WHAT THE CONTRACT SAYS")
    yield from _pair("purpose", contract.federation.description)
    yield from _pair("predicts", f"{contract.task.label} ({contract.task.kind})")
    yield from _pair("SHA-256", f"{contract.digest} (as reviewed?)")
    yield from _pair(
        "size class",
        f"{preflight.size_class}, which stands for {preflight.class_users:,} training users; it is "
        "public, and declared by a person",
    )


def _shard(preflight: Preflight) -> Iterator[str]:
    counts = preflight.local_only
    yield from heading("YOUR SHARD", "for your eyes only: these counts are never sent")
    yield from _pair("file", counts.file)
    yield from _pair("rows", f"{counts.rows:,}")
    yield from _pair(
        "users",
        f"{counts.users:,}, of them {counts.train_users:,} to train with and "
        f"{counts.holdout_users:,} held out to measure the model",
    )
    yield from _pair("duplicates", f"{counts.duplicates:,} rows that repeat another of their user")
    rejected = sum(rows for _, _, rows in counts.rejects)
    yield from _pair("rejected", f"{rejected:,} rows that cannot be used")
    if rejected:
        rows = [(f"{n:,}", field or "(the row)", why) for field, why, n in counts.rejects]
        yield from table((">rows", "<field", "<reason"), (9, 40, 43), rows)


def _fields(preflight: Preflight) -> Iterator[str]:
    contract, counts = preflight.contract, preflight.local_only
    yield from heading("WHAT IS READ", "the shares are for your eyes only")
    user, label = contract.record.user, contract.task.label
    rows = [
        (user, "user id", _column(user, preflight.user_column), "", "", "identity"),
        (label, "outcome", _column(label, preflight.label_column), "", "", "outcome"),
    ]
    for source in preflight.fields:
        name, protected = source.name, source.kind == "protected"
        column = _column(name, source.column or f"always {source.constant}")
        other = f"{counts.other.get(name, 0)}%" if protected or source.kind == "category" else ""
        kept = "counted" if name in contract.evaluation.groups else "groups"
        uses = " + ".join(source.uses) or (kept if protected else "nothing")
        column += ", translated" if source.translated else ""
        rows.append((name, source.kind, column, f"{counts.missing[name]}%", other, uses))
    heads = ("<in the contract", "<kind", "<your column", ">missing", ">other", "<used for")
    yield from table(heads, (31, 9, 22, 7, 5, 14), rows)
    yield from paragraph(
        "missing: users without a value. other: users with a code that the contract does not know. "
        "identity: to tell users apart and, by a keyed hash, to draw who is held out. text: put "
        "into words for BERT, which runs on this machine. numbers: read as a number or code. time: "
        "orders a user's rows and events. groups: kept here, never given to the model."
        + (_COUNTED_FIELD if contract.evaluation.groups else "")
    )
    if preflight.named("text"):
        yield from paragraph(
            "In free text, e-mail addresses and phone, card, account and identity numbers are "
            "masked before the model reads it. Names and addresses are not."
        )


def _unread(preflight: Preflight) -> Iterator[str]:
    yield from heading("WHAT THE MODEL NEVER GETS")
    counts = preflight.local_only
    for kind in UNSEEN:
        yield from _pair(kind, ", ".join(preflight.named(kind)))
    nameless = [f"{counts.nameless} whose name cannot be shown"] if counts.nameless else []
    yield from _pair("undeclared", ", ".join((*counts.ignored, *nameless)))
    yield from paragraph(
        "Of these, the user id and the protected fields are read, the others are not."
    )


def _sent(preflight: Preflight) -> Iterator[str]:
    yield from heading("ALL THAT LEAVES THIS MACHINE", "to the coordinator, over mutual TLS")
    rows = []
    for sending in preflight.sends:
        times, size = "", ""
        if sending.times is not None:
            times = f"{sending.times:,}"
            size = "?" if sending.bytes is None else f"{sending.bytes:,}"
        rows.append((sending.what, sending.when, times, size, "\n".join(sending.contains)))
    heads = ("<message", "<when", ">times", ">bytes", "<all that is in it")
    yield from table(heads, (17, 15, 6, 9, 43), rows)
    yield from paragraph(
        "times: by the contract's schedule. bytes: of the numbers in one message (?: the "
        "backbone's width tells, which is not known here); their names and shapes come on top."
    )
    for sending in preflight.sends:
        if sending.times is not None:
            yield from paragraph(f"Protection of each {sending.what}: {sending.protection}.")
    yield from heading("WHAT NEVER LEAVES")
    for what in never_sent(preflight.plan):
        yield from paragraph(what, mark="- ")


def _told(preflight: Preflight) -> Iterator[str]:
    contract, plan = preflight.contract, preflight.plan
    yield from heading("WHAT THE COORDINATOR CAN STILL TELL")
    error = _held_out_error(contract, plan)
    _, told = COUNTED[contract.task.kind]
    close = f"give or take {error:.0f} (one standard deviation)" if plan.private else "exactly"
    if contract.federated_fields:
        spread = f"give or take {plan.statistics_noise_multiplier:g} users a cell"
        yield from paragraph(
            f"From the statistics answer it can tell, {spread if plan.private else 'exactly'}, how "
            "the values of your training users are spread over the cells of the contract's grids, "
            "and so about how many have a value at all."
        )
    yield from paragraph(
        "What is true of your users as a whole is not hidden. From each evaluation the coordinator "
        f"can tell, {close}, how many users are held out, so about how many you have in all; and "
        f"{told}{_groups_told(contract.evaluation.groups)}. It also sees this machine's network "
        "address, when it is connected, and how long answers take. The other holders see averages "
        "over holders."
    )


def _held_out_error(contract: Contract, plan: MechanismPlan) -> float:
    """Standard deviation of the number of held-out users that the last evaluation tells.

    Each of its tables adds up to that number but for its own noise, σ² a cell: the best that can be
    made of them is their mean, weighted by the inverse of their variances.
    """
    cells = [2 * contract.evaluation.bins]
    cells += [2 * group_columns(field) for field in contract.groups_at(contract.training.rounds)]
    return plan.evaluation_noise_multiplier / math.sqrt(sum(1 / each for each in cells))


def _groups_told(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    of = ", ".join(names)
    return f"; from the last one also how those of each code of {of} are decided and turn out"


def _spent(preflight: Preflight) -> Iterator[str]:
    plan, ledger = preflight.plan, preflight.ledger
    yield from heading("WHAT CAN BE TOLD ABOUT ONE USER")
    if plan.epsilon is None:
        yield from paragraph("Anything: there is NO budget, so epsilon is infinite.")
        return
    factor = math.exp(plan.epsilon)
    yield from paragraph(
        "Epsilon bounds it: 0 tells nothing, and less is better. Someone who has all messages, and "
        "knows all other users, guesses whether a certain user is in the shard. The messages move "
        "the odds of that guess by a factor of at most e^epsilon (at the budget, "
        f"{factor:,.{0 if factor >= 100 else 1}f}), save for a slack of delta = {plan.delta:g}."
    )
    rows = [("the contract's whole schedule", *_three(preflight.schedule))]
    if ledger is not None:
        rounds = max(plan.rounds - ledger.rounds, 0)
        evaluations = max(plan.evaluations - ledger.evaluations, 0)
        rest = f"your ledger, if the other {rounds} rounds and {evaluations} evaluations come"
        told = _three if not ledger.overrides else _unknown
        rows.append(("your ledger so far, over all contracts", *told(ledger.spent)))
        rows.append(("your ledger, if all rounds were still to come", *told(ledger.all_to_come)))
        if ledger.rounds or ledger.evaluations or ledger.statistics:
            rows.append((rest, *told(ledger.rest_to_come)))
    rows.append(("budget: past it the ledger refuses", "", "", up(plan.epsilon)))
    heads = ("<epsilon", ">training user", ">hold-out user", ">any user")
    yield from table(heads, (52, 13, 13, 9), rows)
    yield from paragraph(
        "For adding or removing one user of this holder, by privacy loss distributions "
        f"(dp-accounting), rounded up, at delta = {plan.delta:g}. If one user's record is changed "
        f"instead, the whole schedule has {up(preflight.replace_one)}; the budget is not about "
        "that. For a user of several holders, theirs add up."
    )
    yield from paragraph(
        "A coordinator that asks more often than the schedule is answered until the budget is "
        "spent, and then refused. Epsilon bounds what is in the messages, not the time of their "
        "coming. It does not by itself make them anonymous in the sense of the law."
    )


def _column(name: str, column: str) -> str:
    return "same name" if column == name else column


def _three(spend: Spend) -> tuple[str, str, str]:
    return up(spend.train), up(spend.holdout), up(spend.any)


def _unknown(spend: Spend) -> tuple[str, str, str]:
    """In place of what the entries that are left add up to."""
    return "unknown", "unknown", "unknown"


def _pair(name: str, words: str) -> list[str]:
    return wrapped(words or "none", f"  {name:<13}", " " * 15)
