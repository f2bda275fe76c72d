"""A release of a packaged federation, trained in one process, to score with."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from credit_client.shard import Example
from credit_common.backbone import resolve_backbone
from credit_common.claim import Facts, schedule_epsilon
from credit_common.contract import parse_contract
from credit_common.model import CreditModel
from credit_common.release import write_release
from credit_simulations.data import contract_path
from credit_simulations.federation import make_parties, read_shards, simulate
from credit_simulations.packaged import packaged_shards


def train_release(name: str, folder: Path, holders: int, users: int) -> tuple[Path, int]:
    """Train by the packaged contract, with its privacy, and write a release.

    Args:
        name: Of the data set.
        folder: Of the release; must not exist.
        holders: The biggest ones take part.
        users: At most so many training users of each.

    Returns:
        The biggest holder's shard, and how many holders took part.
    """
    text = contract_path(name).read_text(encoding="utf-8")
    contract = parse_contract(text)
    paths = packaged_shards(name, holders)
    shards = {
        holder: replace(shard, train=_some(shard.train, users), holdout=_some(shard.holdout, users))
        for holder, shard in read_shards(contract, paths).items()
    }
    model = CreditModel(contract, resolve_backbone(contract.model))
    with TemporaryDirectory() as ledgers:
        outcome = simulate(
            contract, make_parties(contract, shards, model), model, ledgers=Path(ledgers)
        )
    rounds = contract.training.rounds
    spent = schedule_epsilon(contract, rounds)
    facts = Facts(
        rounds=rounds,
        holders=len(shards),
        epsilon=spent[0] if spent else None,
        holdout_epsilon=spent[1] if spent else None,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    write_release(folder, text, model, outcome.adapter, facts, outcome.edges)
    biggest = max(shards, key=lambda holder: len(shards[holder].train))
    return paths[biggest], len(shards)


def _some(examples: tuple[Example, ...], most: int) -> tuple[Example, ...]:
    """The first ones: they are in the order of keyed hashes."""
    return examples[:most]
