"""The federation file: what every holder and the coordinator agree on, in one public TOML.

The contract, not the server, sets what is trained and how: task, fields, split, model, training,
privacy, evaluation and statistics; and how a score is told: scorecard, decision and reasons. It is
checked where it is loaded, frozen, and known by the SHA-256 digest of its canonical form; two files
with the same meaning have the same digest.

Example:
    >>> contract = load_contract("simulations/credit_simulations/contracts/german.toml")
    ... # doctest: +SKIP
    >>> contract.digest[:12]  # doctest: +SKIP
"""

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from credit_common.checked import build, require
from credit_common.decision import (
    Decision,
    Reason,
    Scorecard,
    read_decision,
    read_reasons,
    read_scorecard,
)
from credit_common.errors import ContractError
from credit_common.fields import (
    KINDS,
    CategoryField,
    EventsField,
    Field,
    IdentifierField,
    NumberField,
    ProtectedField,
    TextField,
    TimeField,
)
from credit_common.quantiles import read_quantiles, refuse_federated
from credit_common.sections import (
    Evaluation,
    Federation,
    GroupName,
    Model,
    Privacy,
    RecordRule,
    Split,
    Statistics,
    Task,
    Training,
)

FORMAT = 1
_UNORDERED = ("size_classes", "group_clip")  # tables of [privacy] whose order means nothing


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A federation file, checked and frozen. Its parts are the classes of `sections`."""

    federation: Federation
    task: Task
    record: RecordRule
    split: Split
    fields: tuple[Field, ...]
    model: Model
    training: Training
    privacy: Privacy
    evaluation: Evaluation = field(default_factory=Evaluation)
    scorecard: Scorecard = field(default_factory=Scorecard)
    statistics: Statistics = field(default_factory=Statistics)
    decision: Decision = field(default_factory=Decision)
    reasons: tuple[tuple[str, Reason], ...] = ()

    def __post_init__(self) -> None:
        require(all(f.name.strip() for f in self.fields), "fields.name", "", "not empty")
        names = [f.name for f in self.fields]
        for f in self.fields:
            if isinstance(f, EventsField):
                names += [number.name for number in f.numbers()]
        twice = sorted({n for n in names if names.count(n) > 1})
        require(not twice, "fields", twice[0] if twice else "", "declared once each")
        by_name = {f.name: f for f in self.fields}
        require(self.task.label not in by_name, "task.label", self.task.label, "no field's name")
        user = by_name.get(self.record.user)
        ok = isinstance(user, IdentifierField)
        require(ok, "record.user", self.record.user, "the name of an identifier field")
        if self.record.time:
            ok = isinstance(by_name.get(self.record.time), TimeField)
            require(ok, "record.time", self.record.time, "the name of a time field")
        for f in self.fields:
            if isinstance(f, EventsField):
                ok = isinstance(by_name.get(f.until), TimeField)
                require(ok, f"fields.{f.name}.until", f.until, "the name of a time field")
        if "wide" in self.model.train:
            require(bool(self.wide_fields), "model.train", "wide", "left out: no wide field")
        if self.model.reads_text:
            said = any(getattr(f, "text", "") for f in self.fields)
            require(said, "model.train", self.model.train, "without head: no field has a text")
        radius = self.training.adversarial
        ok = radius == 0 or self.model.reads_text
        require(ok, "training.adversarial", radius, "0 where no text is read")
        clipped = {group for group, _ in self.privacy.group_clip}
        ok = not clipped or clipped == set(self.model.train)
        bound = "a bound for each group of model.train, or absent"
        require(ok, "privacy.group_clip", sorted(clipped), bound)
        holders, least = self.federation.min_holders, self.training.least_answers
        bound = (
            f"at least {least} for training.aggregation = {self.training.aggregation!r} with "
            f"training.byzantine = {self.training.byzantine}"
        )
        require(holders >= least, "federation.min_holders", holders, bound)
        private, sigma = self.privacy.private, self.evaluation.noise_multiplier
        ok = (sigma >= 0.2) if private else (sigma == 0)
        bound = "at least 0.2" if private else "0 where epsilon is absent"
        require(ok, "evaluation.noise_multiplier", sigma, bound)
        sigma, counted = self.statistics.noise_multiplier, bool(self.federated_fields)
        if counted:
            require("wide" in self.model.train, "model.train", self.model.train, _READS_EDGES)
        ok = (sigma >= 0.2) if private and counted else (sigma == 0)
        if counted:
            require(ok, "statistics.noise_multiplier", sigma, bound)
        require(ok, "statistics.noise_multiplier", sigma, "0 where no field's edges are federated")
        self._check_told()

    def _check_told(self) -> None:
        """Sections that say how a score is told."""
        ok = self.decision == Decision() or self.task.kind == "binary"
        require(ok, "decision", self.task.kind, "left out: the task has no probability of default")
        scored = {f.name for f in self.fields if isinstance(f, _SCORED)}
        odd = [name for name, _ in self.reasons if name not in scored]
        require(not odd, "reasons", odd[0] if odd else "", "a field that is scored")
        groups, protected = self.evaluation.groups, {f.name for f in self.protected_fields}
        strange = [name for name in groups if name not in protected]
        require(not strange, "evaluation.groups", strange[:1], "names of protected fields")
        ok = not groups or self.decision.decides
        require(ok, "evaluation.groups", groups, "left out where [decision] has no cut-offs")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical form, in hex."""
        return hashlib.sha256(canonical(self)).hexdigest()

    @cached_property
    def wide_fields(self) -> tuple[NumberField | CategoryField, ...]:
        """Numbers and categories in the contract's order, event lists spelt out."""
        wide: list[NumberField | CategoryField] = []
        for f in self.fields:
            if isinstance(f, NumberField | CategoryField):
                wide.append(f)
            elif isinstance(f, EventsField):
                wide.extend(f.numbers())
        return tuple(wide)

    @cached_property
    def federated_fields(self) -> tuple[NumberField, ...]:
        """Numbers whose edges come from the statistics round, in the contract's order."""
        return tuple(f for f in self.fields if isinstance(f, NumberField) and f.quantiles)

    def with_edges(self, edges: Mapping[str, Sequence[float]]) -> "Contract":
        """The same federation with its federated edges filled in, for the wide features.

        Its digest is another one: what is agreed on and compared is the contract without them.

        Args:
            edges: By the name of each federated field, no more and no fewer.

        Raises:
            ContractError: If a name, a number of edges, their order or an edge is wrong.
        """
        odd = sorted(set(edges) ^ {f.name for f in self.federated_fields})
        require(not odd, "edges", odd, "those of the fields with federated edges")
        if not edges:
            return self
        for own in self.federated_fields:
            found, most = len(edges[own.name]), own.bins - 1
            require(found == most, f"fields.{own.name}.edges", found, f"{most} edges")
        filled = tuple(
            dataclasses.replace(f, edges=tuple(map(float, edges[f.name])))
            if isinstance(f, NumberField) and f.name in edges
            else f
            for f in self.fields
        )
        return dataclasses.replace(self, fields=filled)

    @cached_property
    def protected_fields(self) -> tuple[ProtectedField, ...]:
        """Fields that are kept for group gaps and never scored."""
        return tuple(f for f in self.fields if isinstance(f, ProtectedField))

    def groups_at(self, round_: int) -> tuple[ProtectedField, ...]:
        """Fields by whose codes the evaluation of a round counts too: those of the last round."""
        if round_ != self.training.rounds:
            return ()
        by_name = {f.name: f for f in self.protected_fields}
        return tuple(by_name[name] for name in self.evaluation.groups)

    def without_privacy(self) -> "Contract":
        """The same federation at epsilon = infinity, for baselines in simulation."""
        return dataclasses.replace(
            self,
            privacy=dataclasses.replace(self.privacy, epsilon=None, noise_multiplier=0.0),
            evaluation=dataclasses.replace(self.evaluation, noise_multiplier=0.0),
            statistics=dataclasses.replace(self.statistics, noise_multiplier=0.0),
        )

    def untold(self) -> "Contract":
        """The same federation without what says how a score is told, and who is counted by it.

        Two contracts whose `untold()` have one digest train the same model.
        """
        return dataclasses.replace(
            self,
            evaluation=dataclasses.replace(self.evaluation, groups=()),
            scorecard=Scorecard(),
            decision=Decision(),
            reasons=(),
        )

    def training_only(self, *groups: GroupName) -> "Contract":
        """The same federation, training only the named groups of weights."""
        model = dataclasses.replace(self.model, train=groups)
        radius = self.training.adversarial if model.reads_text else 0.0
        clip = tuple(pair for pair in self.privacy.group_clip if pair[0] in groups)
        return dataclasses.replace(
            self,
            model=model,
            training=dataclasses.replace(self.training, adversarial=radius),
            privacy=dataclasses.replace(self.privacy, group_clip=clip),
        )


def canonical(contract: Contract) -> bytes:
    """The contract's meaning as JSON with sorted keys, the bytes that its digest is taken of."""
    plain = {"format": FORMAT, **dataclasses.asdict(contract)}
    for name in _UNORDERED:
        plain["privacy"][name] = dict(plain["privacy"][name])
    if not contract.federated_fields:
        del plain["statistics"]
    for name in ("lowest", "highest"):
        if plain["scorecard"][name] is None:
            del plain["scorecard"][name]
    if contract.decision == Decision():
        del plain["decision"]
    if not contract.reasons:
        del plain["reasons"]
    if not contract.evaluation.groups:
        del plain["evaluation"]["groups"]
    for name, as_before in _FORMERLY.items():
        if plain["training"][name] == as_before:
            del plain["training"][name]
    if plain["model"]["mean_weight"] == 0:
        del plain["model"]["mean_weight"]
    if plain["model"]["head_bias"]:
        del plain["model"]["head_bias"]
    for declared in plain["fields"]:
        if declared.get("quantiles", "") is None:
            del declared["quantiles"]
        if declared.get("examples", True) == ():
            del declared["examples"]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def parse_contract(text: str) -> Contract:
    """Check the text of a federation file.

    Raises:
        ContractError: Naming table, key, value and bound.
    """
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ContractError(f"not valid TOML: {error}") from None
    version = tables.pop("format", FORMAT)
    require(version == FORMAT, "format", version, f"{FORMAT}, the only one known")
    if "scorecard" in tables:
        tables["scorecard"] = read_scorecard(tables["scorecard"])
    if "decision" in tables:
        tables["decision"] = read_decision(tables["decision"])
    declared = tables.get("fields")
    if not isinstance(declared, list) or not declared:
        raise ContractError("[[fields]] is missing: declare each column of a shard")
    tables["fields"] = tuple(_field(table) for table in declared)
    privacy = tables.get("privacy")
    if isinstance(privacy, dict):
        for name in _UNORDERED:
            if isinstance(privacy.get(name), Mapping):
                privacy[name] = list(privacy[name].items())
    return _assemble(tables)


def load_contract(path: str | Path) -> Contract:
    """Read and check a federation file.

    Raises:
        ContractError: If the file cannot be read, or is not a valid contract.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ContractError(f"cannot read the contract {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ContractError(f"the contract {path} is not UTF-8 text") from None
    try:
        return parse_contract(text)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from None


def _field(table: object) -> Field:
    if not isinstance(table, Mapping) or "name" not in table:
        raise ContractError(f"[[fields]] {table!r} must be a table with a name")
    where = f"fields.{table['name']}"
    kind = table.get("kind")
    known = isinstance(kind, str) and kind in KINDS
    require(known, f"{where}.kind", kind, "one of " + ", ".join(KINDS))
    table = dict(table)
    values = table.get("values")
    if kind == "category" and isinstance(values, Mapping):  # code -> how it is said
        table["values"], table["labels"] = list(values), list(values.values())
    elif kind == "number":
        table = read_quantiles(table, where)
    elif kind == "events":
        refuse_federated(table.get("edges"), where)
    return build(KINDS[str(kind)], table, where)


def _assemble(tables: dict[str, Any]) -> Contract:
    parts = {f.name: f for f in dataclasses.fields(Contract)}
    unknown = sorted(set(tables) - set(parts))
    if unknown:
        raise ContractError(f"unknown table [{unknown[0]}]; known: {', '.join(parts)}")
    made: dict[str, Any] = {
        "fields": tables["fields"],
        "reasons": read_reasons(tables.get("reasons", {})),
    }
    for name, cls in _PARTS.items():
        if name in tables:
            made[name] = build(cls, tables[name], name)
        elif parts[name].default_factory is dataclasses.MISSING:
            raise ContractError(f"table [{name}] is missing")
    return Contract(**made)


_PARTS: dict[str, type] = {
    "federation": Federation,
    "task": Task,
    "record": RecordRule,
    "split": Split,
    "model": Model,
    "training": Training,
    "privacy": Privacy,
    "evaluation": Evaluation,
    "scorecard": Scorecard,
    "statistics": Statistics,
    "decision": Decision,
}
_SCORED = (NumberField, CategoryField, TextField, EventsField)
_FORMERLY = {
    "upload": "float32",
    "server_learning_rate": 1.0,
    "server_momentum": 0.0,
    "aggregation": "mean",
    "byzantine": 0,
}
"""Keys of [training] that older contracts lack, left out of a digest where they change nothing."""
_READS_EDGES = 'with "wide" where edges are federated: nothing else reads them'
