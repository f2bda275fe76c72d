"""The texts that training is measured on: records of public data sets, as BERT would read them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from credit_client.shard import read_shard
from credit_common.contract import Contract
from credit_common.fields import CategoryField, Field, NumberField
from credit_common.record import Record
from credit_simulations.packaged import packaged_contract, packaged_shards

HOLDERS = 10
"""Biggest holders whose users are pooled."""

LONGEST = 128
"""Tokens of a text at most, where a text says the whole record or all that the borrower wrote."""


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """Users of one data set and the contract that says how they are spelt out.

    Attributes:
        name: Of the set, as `--texts` has it.
        contract: What is measured: LoRA and head alone train, as in the plain recipe.
        packaged: The data set's own contract, with its wide part.
        biggest: Training users of the biggest holder.
        train, holdout: Users of all holders, holder by holder.
    """

    name: str
    contract: Contract
    packaged: Contract
    biggest: tuple[Record, ...]
    train: tuple[Record, ...]
    holdout: tuple[Record, ...]


_DATA = {
    "pakdd2009": "pakdd2009",
    "lendingclub": "lendingclub",
    "pakdd2009-short": "pakdd2009",
    "german": "german",
}
"""Texts -> data set. The first says the whole record, the second as its contract does but to
`LONGEST` tokens, the others say what their contract says."""

TEXTS = tuple(_DATA)
MAIN = ("pakdd2009", "lendingclub")
"""The texts that the figures are about; the others are informative."""


def load_texts(name: str) -> TextSet:
    """Read a set of texts.

    Raises:
        FetchError: If its data set can be had neither from the cache nor from its source.
    """
    data = _DATA[name]
    packaged = packaged_contract(data)
    contract = packaged
    if name == "pakdd2009":
        contract = whole_record(contract)
    if name in MAIN:
        contract = replace(contract, model=replace(contract.model, tokens=LONGEST))
    biggest, train, holdout = _records(data)
    return TextSet(
        name=name,
        contract=text_only(contract),
        packaged=packaged,
        biggest=biggest,
        train=train,
        holdout=holdout,
    )


def text_only(contract: Contract) -> Contract:
    """The contract without its wide part and without perturbed copies."""
    plain = contract.training_only("lora", "head")
    return replace(plain, training=replace(plain.training, adversarial=0.0))


def whole_record(contract: Contract) -> Contract:
    """The contract with every number and category said as "name: value", as raw columns would be.

    A recipe without a wide part has to read everything as text.
    """
    return replace(contract, fields=tuple(_said(f, "{}: {{}}") for f in contract.fields))


def long_texts(contract: Contract) -> Contract:
    """The contract with texts that fill `LONGEST` tokens whatever the record holds."""
    template = "{}: {{}}" + " and so on" * LONGEST
    said = replace(contract, fields=tuple(_said(f, template) for f in contract.fields))
    return replace(said, model=replace(said.model, tokens=LONGEST))


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` records, evenly spaced, so that every holder gives its share."""
    if count >= len(records):
        return list(records)
    return [records[i * len(records) // count] for i in range(count)]


def _said(field: Field, template: str) -> Field:
    if not isinstance(field, NumberField | CategoryField):
        return field
    words = field.name.lower().removeprefix("flag_").removeprefix("quant_").replace("_", " ")
    if isinstance(field, CategoryField):
        return replace(field, text=template.format(words), labels=())
    return replace(field, text=template.format(words))


@cache
def _records(data: str) -> tuple[tuple[Record, ...], ...]:
    """Training users of the biggest holder, and both parts of all holders."""
    contract = packaged_contract(data)
    shards = [read_shard(path, contract) for path in packaged_shards(data, HOLDERS).values()]
    largest = max(shards, key=lambda shard: len(shard.train))
    return (
        tuple(e.record for e in largest.train),
        tuple(e.record for shard in shards for e in shard.train),
        tuple(e.record for shard in shards for e in shard.holdout),
    )
