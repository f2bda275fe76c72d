"""What a merchant wants to know before anything is sent: `credit-client --check`.

Contract, shard and ledger are read, and nothing else happens: no model is loaded and nobody is
called. What comes out are public facts of the contract and counts for the holder's own eyes, never
a user's value or id. `credit_client.preflight_text` says it as a page and as JSON.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from credit_client.disclosure import (
    Outlook,
    Sending,
    Spend,
    ledger_outlook,
    schedule_spend,
    sendings,
)
from credit_client.layout import Source, names_to_show, sources
from credit_client.ledger import Ledger
from credit_client.mapping import ShardMapping
from credit_client.shard import Shard, read_shard
from credit_common.contract import Contract
from credit_common.errors import PrivacyError
from credit_common.fields import CategoryField, Field, NumberField
from credit_common.privacy import NO_PRIVACY, MechanismPlan, check_plan, mechanism_plan
from credit_common.record import OTHER


@dataclass(frozen=True, kw_only=True)
class ShardCounts:
    """What was found in the shard. It stays on this machine.

    Attributes:
        rejects: (field, reason, rows), most rows first; no field for a malformed row.
        missing: Field -> users without a value (of events: without an event) in whole percent;
            values that the contract fills in count.
        other: Field -> users with a code outside the contract's, in percent, where there are any.
        ignored: Columns that the contract does not declare, by name; `nameless` counts those that
            have no name or one that looks like data.
    """

    file: str
    rows: int
    users: int
    train_users: int
    holdout_users: int
    duplicates: int
    rejects: tuple[tuple[str, str, int], ...]
    missing: Mapping[str, int]
    other: Mapping[str, int]
    ignored: tuple[str, ...]
    nameless: int


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """The answers. Made by `inspect`.

    Attributes:
        size_class, class_users: As declared, and the training users that it stands for.
        user_column, label_column: The merchant's names of them.
        fields: The contract's fields that are read.
        schedule: ε of the contract's whole schedule; `replace_one` under a change of one user.
        ledger: None where there is none yet.
        refusals: Why the client would not take part.
        remarks: What a person should look at; hinders nothing and is never sent.
    """

    contract: Contract
    plan: MechanismPlan
    size_class: str
    class_users: int
    user_column: str
    label_column: str
    fields: tuple[Source, ...]
    local_only: ShardCounts
    sends: tuple[Sending, ...]
    schedule: Spend
    replace_one: float
    ledger: Outlook | None
    refusals: tuple[str, ...]
    remarks: tuple[str, ...]

    def named(self, kind: str) -> tuple[str, ...]:
        """The contract's fields of a kind, by name."""
        return tuple(f.name for f in self.contract.fields if f.kind == kind)


def inspect(
    contract: Contract,
    shard_path: Path,
    *,
    size_class: str,
    ledger: Ledger | None,
    mapping: ShardMapping | None = None,
    max_epsilon: float | None = None,
    max_delta: float | None = None,
    allow_no_privacy: bool = False,
) -> Preflight:
    """Read contract, shard and ledger, and change none of them.

    Args:
        ledger: None where the holder has none yet.
        max_epsilon, max_delta, allow_no_privacy: The holder's floors, as the client would get them.

    Returns:
        An answer also where the client would not take part; `refusals` says why.

    Raises:
        ContractError: If the contract has no such size class.
        ShardError: If the file cannot be used at all.
        PrivacyError: If the ledger cannot be read.
    """
    mapping = mapping or ShardMapping()
    plan = mechanism_plan(contract, size_class)
    shard = read_shard(shard_path, _unfilled(contract), mapping=mapping)
    counts = _counts(shard_path, shard)
    class_users = contract.privacy.class_users(size_class)
    outlook = (
        None
        if ledger is None
        else ledger_outlook(contract, plan, ledger, mapping.column(contract.record.user))
    )
    refusals = [] if plan.private or allow_no_privacy else [NO_PRIVACY]
    refusals += _refusal(check_floors, contract, max_epsilon, max_delta)
    refusals += _refusal(check_plan, plan)
    if ledger and outlook and plan.private and outlook.rounds < plan.rounds:
        refusals += _refusal(ledger.check, "train", plan.round_event(), plan.epsilon, plan.delta)
    counted = plan.statistics_event()
    if ledger and outlook and counted and not outlook.statistics and not outlook.rounds:
        refusals += _refusal(ledger.check, "train", counted, plan.epsilon, plan.delta)
    if not counts.train_users:
        refusals.append("the shard has no usable training user")
    schedule, replace_one = schedule_spend(plan)
    return Preflight(
        contract=contract,
        plan=plan,
        size_class=size_class,
        class_users=class_users,
        user_column=mapping.column(contract.record.user),
        label_column=mapping.column(contract.task.label),
        fields=sources(contract, mapping),
        local_only=counts,
        sends=sendings(contract, plan),
        schedule=schedule,
        replace_one=replace_one,
        ledger=outlook,
        refusals=tuple(refusals),
        remarks=(*_on_shard(counts, class_users), *_on_ledger(outlook, plan)),
    )


def check_floors(contract: Contract, max_epsilon: float | None, max_delta: float | None) -> None:
    """Refuse a contract that asks for more than the holder allows; None allows anything.

    Raises:
        PrivacyError: Naming both figures. A contract without a budget is above any of them.
    """
    epsilon, delta = contract.privacy.epsilon, contract.privacy.delta
    for name, asked, most in (("epsilon", epsilon, max_epsilon), ("delta", delta, max_delta)):
        if most is not None and (epsilon is None or asked is None or not asked <= most):
            wants = "has no privacy budget" if epsilon is None else f"asks for {name} {asked:.12g}"
            raise PrivacyError(f"the contract {wants}, --max-{name} is {most:.12g}")


def _refusal(check: Callable[..., object], *arguments: object) -> list[str]:
    try:
        check(*arguments)
    except PrivacyError as error:
        return [str(error)]
    return []


def _unfilled(contract: Contract) -> Contract:
    """The contract without filled-in values, which look like any other; rows fare the same."""
    fields: list[Field] = []
    for f in contract.fields:
        if isinstance(f, NumberField | CategoryField) and f.missing == "impute":
            f = dataclasses.replace(f, missing="cell")
        fields.append(f)
    return dataclasses.replace(contract, fields=tuple(fields))


def _counts(path: Path, shard: Shard) -> ShardCounts:
    rejects = Counter((reject.field, reject.reason) for reject in shard.rejects)
    other: Counter[str] = Counter()
    for example in (*shard.train, *shard.holdout):
        for values in (example.record.values, example.record.protected):
            other.update(name for name, value in values.items() if value == OTHER)
    ignored = names_to_show(shard.ignored_columns)

    def percent(counts: Mapping[str, int]) -> dict[str, int]:
        return {name: round(100 * n / max(shard.users, 1)) for name, n in counts.items()}

    return ShardCounts(
        file=str(path),
        rows=shard.rows,
        users=shard.users,
        train_users=len(shard.train),
        holdout_users=len(shard.holdout),
        duplicates=shard.duplicates,
        rejects=tuple((*what, n) for what, n in rejects.most_common()),
        missing=percent(shard.missing),
        other=percent(other),
        ignored=ignored,
        nameless=len(shard.ignored_columns) - len(ignored),
    )


def _on_shard(counts: ShardCounts, class_users: int) -> Iterator[str]:
    found = counts.train_users
    if found and not class_users / 2 <= found <= class_users * 2:
        yield (
            f"{found} training users were found, the size class stands for {class_users}: more "
            "than a factor of 2 apart. Only you see this; privacy does not depend on it"
        )
    if not counts.holdout_users:
        yield "no hold-out user was found: what is sent at evaluations is noise alone"
    for name, share in counts.missing.items():
        if counts.users and share == 100:
            yield f"field {name}: hardly any user has a value; is it the right column?"
    for name, share in counts.other.items():
        if share >= 50:
            yield (
                f"field {name}: {share}% of users have a code that the contract does not know; "
                f"should the mapping translate it?"
            )


def _on_ledger(outlook: Outlook | None, plan: MechanismPlan) -> Iterator[str]:
    if outlook is None:
        yield (
            "no ledger was looked at: if this holder has ever taken part, its ledger must be "
            "there, since what was spent counts"
        )
        return
    if outlook.overrides:
        yield (
            "entries of the ledger were lost, and a person signed for that: what your users have "
            "spent is unknown. The budget is kept by the entries that are left"
        )
    if outlook.accounts_add:
        yield (
            "users were split in another way before, so that one may be on both sides: what is "
            "spent on training and on hold-out users adds up"
        )
    if plan.epsilon is not None and not outlook.rest_to_come.any <= plan.epsilon:
        yield "the budget ends before the schedule does: from then on this client refuses by itself"
