"""A release and a merchant's file in, a study out."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from credit_client.mapping import load_mapping
from credit_client.scoring.calibration import METHODS, Method, read_calibration
from credit_client.scoring.points import default_probability, points
from credit_client.scoring.reference import open_reference
from credit_client.shard import Example, Shard, read_shard
from credit_client.validation.bands import score_bands
from credit_client.validation.calibration import FITTED_ON, calibrated, cross_fitted
from credit_client.validation.challenger import Challenge, challenge
from credit_client.validation.cutoffs import Stakes, banded, cut_off_table, decided, marked
from credit_client.validation.evidence import evidence
from credit_client.validation.fairness import fairness
from credit_client.validation.figures import figures
from credit_client.validation.periods import out_of_time
from credit_client.validation.sample import (
    Sample,
    Users,
    chosen,
    outcomes,
    require_binary,
    require_enough,
    why_not,
)
from credit_client.validation.study import Judged, Study, TextPart
from credit_common.contract import Contract
from credit_common.decision import Decision
from credit_common.errors import ContractError, ShardError
from credit_common.metrics import auc_exact
from credit_common.points_table import PointsTable, points_table
from credit_common.release import Release, open_release

RELEASED = "as released"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a study.

    Attributes:
        mapping: File that translates the merchant's columns, codes and units.
        users: The hold-out users of the contract's split, or all.
        calibration: The holder's own, as `credit-client calibrate` writes it; its method is judged,
            and decisions are made by PDs of that method.
        challenger: Folder of another release.
        since: First day of the second period.
        decision: The holder's own cut-offs, with bands of its own or the contract's; None for the
            contract's.
        stakes: What a default costs.
        device: As for `device_of`.
    """

    mapping: Path | None = None
    users: Users = "holdout"
    calibration: Path | None = None
    challenger: Path | None = None
    since: date | None = None
    decision: Decision | None = None
    stakes: Stakes = field(default_factory=Stakes)
    device: str = "auto"


def judge(release: Path, shard: Path, asked: Asked) -> Study:
    """Judge a release on the users of a file.

    Raises:
        ContractError: If a release's task is not binary, or the contract lacks what is asked for.
        ShardError: If the file cannot be used, or has too few users or users of one class.
        TrustError, WireError: If a release is not whole, see `open_release`.
        BackboneError, FetchError: If its BERT cannot be had.
    """
    opened = open_release(release)
    contract = opened.resolved
    require_binary(contract)
    method: Method | None = None
    if asked.calibration:
        method = read_calibration(asked.calibration, opened.digest).method
    if asked.since is not None and not contract.record.time:
        raise ContractError("record.time: is not in the contract, and --from needs it")
    other = open_release(asked.challenger) if asked.challenger else None
    if other is not None:
        require_binary(other.contract)
    read, examples = _users(opened, shard, asked)
    labels = outcomes(examples)
    logits = _logits(opened, examples, asked.device)
    keys = [example.key for example in examples]
    every, refused = _calibrations(contract, logits, labels, keys)
    if method is not None and method in refused:
        raise ShardError(f"{shard}: {refused[method]} ({FITTED_ON})")
    sample = Sample(examples=examples, labels=labels, logits=logits, pds=every[method or RELEASED])
    decision = contract.decision
    if asked.decision is not None:
        bands = asked.decision.bands or decision.bands
        decision = dataclasses.replace(asked.decision, bands=bands)
    marks = marked(contract, decision)
    table = points_table(contract, opened.head)
    scale = logits if method is None else np.log(sample.pds) - np.log1p(-sample.pds)
    told = points(contract.scorecard, scale)  # as `scoring.told` tells them
    return Study(
        judged=Judged(
            federation=contract.federation.name,
            contract_digest=opened.contract.digest,
            release_digest=opened.digest,
            created=opened.facts.created,
            file=shard.name,
            rows=read.rows,
            rejected=len(read.rejects),
            file_users=read.users,
            users=asked.users,
            calibration=method,
            own_cut_offs=asked.decision is not None,
        ),
        decision=decision,
        stakes=asked.stakes,
        marks=marks,
        figures=figures(logits, sample.pds, labels),
        bands=score_bands(logits, sample.pds, told, labels),
        cut_offs=cut_off_table(sample.pds, labels, marks, asked.stakes),
        decided=decided(sample.pds, labels, decision),
        banded=banded(sample.pds, labels, decision),
        calibration=tuple(calibrated(name, pds, labels) for name, pds in every.items()),
        not_calibrated=tuple(refused.items()),
        fairness=fairness(contract, sample, marks),
        evidence=evidence(contract, [example.record for example in examples], labels),
        points=table,
        text=_text_part(contract, table, sample),
        challenge=_challenge(other, shard, asked, method, sample, marks[0]) if other else None,
        periods=out_of_time(sample, asked.since) if asked.since else None,
        sample=sample,
        told_points=told,
    )


def _users(release: Release, shard: Path, asked: Asked) -> tuple[Shard, tuple[Example, ...]]:
    """What a file holds in a release's terms, and the users that are judged."""
    mapping = load_mapping(asked.mapping, release.contract) if asked.mapping else None
    read = read_shard(shard, release.contract, mapping=mapping)
    examples = chosen(read, asked.users)
    which = "hold-out users" if asked.users == "holdout" else "users"
    require_enough(outcomes(examples), f"{shard}: {which} with an outcome")
    return read, examples


def _logits(release: Release, examples: Sequence[Example], device: str) -> NDArray[np.float64]:
    engine = open_reference(release, device)
    scores = engine.score([example.record for example in examples])
    return scores[:, 0].astype(np.float64)


def _calibrations(
    contract: Contract,
    logits: NDArray[np.float64],
    labels: NDArray[np.int64],
    keys: Sequence[str],
) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """PDs as released and by each method; and why not, of one that these users are too few for."""
    every = {RELEASED: default_probability(contract, logits)}
    refused: dict[str, str] = {}
    for method in METHODS:
        try:
            every[method] = cross_fitted(method, logits, labels, keys)
        except ShardError as error:
            refused[method] = str(error)
    return every, refused


def _text_part(contract: Contract, table: PointsTable | None, sample: Sample) -> TextPart | None:
    if table is None or not contract.model.reads_text:
        return None
    told = np.array([table.total(contract, example.record) for example in sample.examples])
    wide = -told * math.log(2.0) / contract.scorecard.pdo  # the logit, but for a constant
    text, both = np.var(sample.logits - wide), np.var(wide)
    return TextPart(
        share=float(text / (text + both)) if text + both > 0 else math.nan,
        auc_wide=auc_exact(wide, sample.labels),
    )


def _challenge(
    other: Release,
    shard: Path,
    asked: Asked,
    method: Method | None,
    sample: Sample,
    mark: tuple[str, float],
) -> Challenge:
    """The challenger on those of the champion's users that it may be judged on too.

    A row stands for its user at both sides: keys differ where the contracts' salts do.
    """
    _, examples = _users(other, shard, asked)
    theirs = {example.row: example for example in examples}
    both = [n for n, example in enumerate(sample.examples) if example.row in theirs]
    shared = [theirs[sample.examples[n].row] for n in both]
    labels = sample.labels[both]
    if not np.array_equal(labels, outcomes(shared)):
        raise ContractError("task.positive: the two contracts do not mean the same outcome")
    reason = why_not(labels)
    if reason:
        raise ShardError(f"{shard}: users that both releases may be judged on: {reason}")
    logits = _logits(other, shared, asked.device)
    pds = default_probability(other.contract, logits)
    if method is not None:
        pds = cross_fitted(method, logits, labels, [example.key for example in shared])
    champion = (sample.logits[both], sample.pds[both])
    return challenge(labels, champion, (logits, pds), mark, len(sample.examples) - len(both))
