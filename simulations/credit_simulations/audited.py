"""What an audit looks at: a holder's real trainer on real users, and the messages that leave it.

The auditor sees every adapter before and after each round and knows the plan, so it takes the
learning rates and the denominator out again: what is left of a round is the sum of its noised sums.
That needs plain SGD, in which a step moves a weight by its noised sum times a public number.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from credit_client.shard import read_shard
from credit_client.training.examples import Batch, Examples
from credit_client.training.loop import Fill, train
from credit_client.training.randomness import SecureRandom
from credit_client.training.shapes import MOST_ROWS
from credit_common.accountant import solve_noise_multiplier
from credit_common.backbone import resolve_backbone
from credit_common.contract import Contract
from credit_common.model import Arrays, CreditModel
from credit_common.privacy import MechanismPlan, mechanism_plan


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, the users of a holder, and the schedule that all arms of an audit share.

    Attributes:
        users: All users of the audit, encoded; who of them takes part is up to an arm.
        schedule: The plan without a budget.
    """

    model: CreditModel
    users: Examples
    schedule: MechanismPlan

    def plan(self, claim: float | None) -> MechanismPlan:
        """The schedule with the least noise that keeps ε within the claim; None is without noise.

        Raises:
            PrivacyError: If no noise does.
        """
        if claim is None:
            return self.schedule
        steps = self.schedule.rounds * self.schedule.steps
        sigma = solve_noise_multiplier(
            self.schedule.sampling_rate, steps, claim, self.schedule.delta
        )
        return dataclasses.replace(self.schedule, epsilon=claim, noise_multiplier=sigma)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Rounds, steps of a round, and sampling rate of an audit's runs."""

    rounds: int
    steps: int
    sampling_rate: float


def open_subject(contract: Contract, shard: Path, schedule: Schedule, most: int) -> Subject:
    """Read a shard and encode up to `most` of its users, as one holder under plain SGD.

    Which side of the contract's split a user is on does not matter here: an audit draws its own
    line between those who take part and those who do not. The size class fits the users, as the
    class that a person declares would about.

    Raises:
        CreditError: Whatever the shard or the backbone refuses.
    """
    training = dataclasses.replace(
        contract.training,
        **vars(schedule),
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.0,
        average=0.0,
    )
    read = read_shard(shard, contract)
    records = [example.record for example in (*read.train, *read.holdout)][:most]
    privacy = dataclasses.replace(contract.privacy, size_classes=(("audited", len(records)),))
    contract = dataclasses.replace(contract, training=training, privacy=privacy).without_privacy()
    backbone = resolve_backbone(contract.model) if contract.model.reads_text else None
    model = CreditModel(contract, backbone)
    return Subject(
        model=model,
        users=Examples(model, contract, records),
        schedule=mechanism_plan(contract, "audited"),
    )


@dataclass(frozen=True, kw_only=True)
class CanaryBatch(Batch):
    """Rows that stand for canaries: `canaries[i]` is the canary of row i."""

    canaries: NDArray[np.intp]


class Cohort(Examples):
    """Who takes part in an audited run: some of the users, and canaries.

    Poisson sampling treats them alike: `train` draws a coin for each of len(cohort) rows.

    Args:
        users: All users.
        members: Which of them take part.
        canaries: The canary of each further row; one that stands here twice has two rows.
    """

    def __init__(
        self, users: Examples, members: NDArray[np.intp], canaries: NDArray[np.intp]
    ) -> None:
        self._users, self._members, self._canaries = users, members, canaries

    def __len__(self) -> int:
        return len(self._members) + len(self._canaries)

    def batches(self, rows: NDArray[np.intp], expected: float = math.inf) -> Iterator[Batch]:
        """Physical batches of users, then of canaries, that hold the given rows, each once."""
        first = len(self._members)
        yield from self._users.batches(self._members[rows[rows < first]], expected)
        planted = self._canaries[rows[rows >= first] - first]
        for start in range(0, len(planted), MOST_ROWS):
            yield _canary_batch(planted[start : start + MOST_ROWS])


def _canary_batch(canaries: NDArray[np.intp]) -> CanaryBatch:
    weights = (torch.arange(MOST_ROWS) < len(canaries)).float()
    return CanaryBatch(
        rows=canaries,
        canaries=canaries,
        hidden=None,
        mask=None,
        wide=None,
        labels=torch.zeros(MOST_ROWS),
        weights=weights,
    )


@dataclass(frozen=True, kw_only=True)
class Round:
    """What everybody sees of a round.

    Attributes:
        before: The global adapter that the round began with.
        sums: The round's noised sums, added up over its steps: flat float64, in the order of
            `CreditModel.trained`, in units of the gradient. Negative where the weights grew.
    """

    before: Arrays
    sums: NDArray[np.float64]


def rounds(
    subject: Subject,
    plan: MechanismPlan,
    cohort: Cohort,
    *,
    noise: Callable[[], SecureRandom] = SecureRandom,
    fill: Fill | None = None,
) -> Iterator[Round]:
    """Run the holder's trainer for all rounds of the plan, with its adapter as the next global one.

    Args:
        noise: Makes the source of each round's noise.
    """
    adapter = subject.model.initial_adapter()
    for _ in range(plan.rounds):
        after = train(
            subject.model,
            cohort,
            plan,
            adapter,
            sampling=SecureRandom(),
            noise=noise(),
            fill=fill,
        )
        yield Round(before=adapter, sums=_sums(subject.model.contract, plan, adapter, after))
        adapter = after


def coordinates(model: CreditModel, prefix: str = "", suffix: str = "") -> NDArray[np.intp]:
    """Places, in flat order, of the numbers of those tensors whose name begins and ends so."""
    places: list[NDArray[np.intp]] = []
    start = 0
    for name, shape in model.schema().items():
        size = math.prod(shape)
        if name.startswith(prefix) and name.endswith(suffix):
            places.append(np.arange(start, start + size))
        start += size
    return np.concatenate(places) if places else np.zeros(0, np.intp)


def coins(n: int) -> NDArray[np.bool_]:
    """N fair coins that no seed reaches."""
    return SecureRandom().uniform(n) < 0.5


def _sums(
    contract: Contract, plan: MechanismPlan, before: Arrays, after: Arrays
) -> NDArray[np.float64]:
    parts: Sequence[NDArray[np.float64]] = [
        (before[name].astype(np.float64) - after[name]).ravel()
        * (plan.expected_batch_size / getattr(contract.training.learning_rate, name.split(".")[0]))
        for name in before
    ]
    return np.concatenate(parts)
