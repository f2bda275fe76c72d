"""Our own training engine as an arm of the benchmark: the recipe's contract at k trained layers."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from credit_client.training.examples import Examples
from credit_client.training.loop import score, train
from credit_client.training.randomness import RandomSource, SecureRandom, SeededRandom
from credit_common.backbone import Backbone, resolve_backbone
from credit_common.contract import Contract
from credit_common.model import Arrays, CreditModel
from credit_common.privacy import MechanismPlan, mechanism_plan
from credit_common.record import Record
from credit_common.sections import LearningRates

MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What every arm shares.

    Attributes:
        users: Training users.
        batch: Expected rows of a step.
        noise_multiplier: Of the arms with privacy.
    """

    users: int
    batch: int
    noise_multiplier: float

    @property
    def steps_an_epoch(self) -> int:
        """Length of a loader of such batches."""
        return -(-self.users // self.batch)

    @property
    def sampling_rate(self) -> float:
        """Q as Opacus takes it: 1 / len(loader)."""
        return 1.0 / self.steps_an_epoch


class Engine:
    """A model with its examples, kept as they were encoded.

    Args:
        contract: A variant by `at_layers`.
        records: Training users.
    """

    def __init__(self, contract: Contract, records: Sequence[Record]) -> None:
        self.contract = contract
        self.model = CreditModel(contract, resolve_backbone(contract.model))
        self.adapter: Arrays = self.model.initial_adapter()
        self.examples: Examples | None = None
        self._records = records

    def encode(self) -> float:
        """Run the frozen layers on every user; returns the CPU seconds that it took."""
        start = time.process_time()
        self.examples = Examples(self.model, self.contract, self._records)
        return time.process_time() - start

    def cache_mib(self) -> float:
        """Size of what `encode` keeps."""
        return self._encoded().cache_bytes / MEBIBYTE

    def private_steps(self, steps: int) -> tuple[float, list[NDArray[np.float64]]]:
        """CPU seconds of steps with privacy, and the numbers that sampled their batches."""
        source = _Recorded()
        plan = self._plan(self.contract, steps)
        return self._steps(plan, source, SecureRandom()), source.drawn

    def open_steps(self, drawn: Sequence[NDArray[np.float64]]) -> float:
        """CPU seconds of the same steps on the same batches without privacy."""
        plan = self._plan(self.contract.without_privacy(), len(drawn))
        return self._steps(plan, _Replayed(drawn), SeededRandom(0, plan))

    def retune(self, contract: Contract, rates: LearningRates) -> None:
        """Go on under a contract of the same model, with other learning rates."""
        training = replace(contract.training, learning_rate=rates)
        self.contract = self.model.contract = replace(contract, training=training)

    def fit(self, steps: int, seed: int) -> None:
        """Train the adapter from its public start; without privacy from a seed."""
        plan = self._plan(self.contract, steps)
        source = SecureRandom() if plan.private else SeededRandom(seed, plan)
        self.adapter = train(
            self.model,
            self._encoded(),
            plan,
            self.model.initial_adapter(),
            sampling=source,
            noise=source,
        )

    def scores(self, examples: Examples) -> NDArray[np.float32]:
        """Raw scores (n,) of examples that this model encoded."""
        return score(self.model, examples, self.adapter)[:, 0]

    def _encoded(self) -> Examples:
        if self.examples is None:
            self.encode()
        assert self.examples is not None
        return self.examples

    def _plan(self, contract: Contract, steps: int) -> MechanismPlan:
        return replace(mechanism_plan(contract, _CLASS), steps=steps, rounds=1)

    def _steps(self, plan: MechanismPlan, sampling: RandomSource, noise: RandomSource) -> float:
        examples = self._encoded()
        start = time.process_time()
        train(self.model, examples, plan, self.adapter, sampling=sampling, noise=noise)
        return time.process_time() - start


def at_layers(contract: Contract, layers: int, schedule: Schedule) -> Contract:
    """The contract with k trained layers under the benchmark's schedule, by AdamW.

    Args:
        contract: What is trained, private.
        layers: The number k of top layers with LoRA.
        schedule: Users, batch and noise.
    """
    privacy = replace(
        contract.privacy,
        clip_norm=1.0,
        group_clip=(),
        noise_multiplier=schedule.noise_multiplier,
        size_classes=((_CLASS, schedule.users),),
    )
    training = replace(
        contract.training,
        sampling_rate=schedule.sampling_rate,
        optimizer="adam",
        momentum=0.0,
        weight_decay=0.0,
    )
    model = replace(contract.model, layers=layers)
    return replace(contract, model=model, training=training, privacy=privacy)


def depth(backbone: Backbone) -> int:
    """Number of layers of a backbone."""
    config = json.loads((backbone.folder / "config.json").read_text("utf-8"))
    return int(config["num_hidden_layers"])


def depths(contract: Contract) -> tuple[int, ...]:
    """The numbers of trained layers that are measured: 1, 2, 3 and all."""
    every = depth(resolve_backbone(contract.model))
    return tuple(sorted({k for k in (1, 2, 3, every) if k <= every}))


_CLASS = "bench"


class _Recorded(SecureRandom):
    """A secure source that keeps the uniform numbers it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[NDArray[np.float64]] = []

    def uniform(self, n: int) -> NDArray[np.float64]:
        """As SecureRandom."""
        numbers = super().uniform(n)
        self.drawn.append(numbers)
        return numbers


class _Replayed:
    """Gives the numbers of a recorded source once more, for an arm without privacy."""

    def __init__(self, drawn: Sequence[NDArray[np.float64]]) -> None:
        self._left = iter(drawn)

    def uniform(self, n: int) -> NDArray[np.float64]:
        """The next numbers of the recording."""
        numbers = next(self._left)
        assert len(numbers) == n
        return numbers

    def normal(self, n: int) -> NDArray[np.float64]:
        """None: without privacy there is no noise."""
        raise AssertionError("an arm without privacy asked for noise")
