"""The AUC that each arm reaches at the same ε and epochs, so that speed bought with it shows.

Learning rates are chosen on a validation part of the training users: each arm trains on the other
part at each rate of the same grid, and the run with the best validation AUC is the one
that the hold-out users judge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from credit_client.training.examples import Examples
from credit_common.accountant import solve_noise_multiplier
from credit_common.backbone import resolve_backbone
from credit_common.contract import Contract
from credit_common.delong import paired_error
from credit_common.metrics import auc_exact
from credit_common.record import Record
from credit_common.sections import LearningRates
from credit_common.text import record_text
from credit_simulations.bench.engine import Engine, Schedule, at_layers, depth, depths
from credit_simulations.bench.recipes import Recipe
from credit_simulations.bench.texts import TextSet, spread
from credit_simulations.bench.timing import OURS, OURS_OPEN, RECIPES, Arm

RATES = (1e-3, 4e-3)
"""AdamW's, of all trained weights; the same grid for every arm."""
FACTORS = (1.0, 0.25)
"""Of the contract's learning rate of LoRA, where its own layers are held against all of them."""
VALIDATION = 0.25
"""Share of the training users that chooses a rate and trains nothing."""
PHYSICAL = 16
"""The recipe is sorted by length and padded less here: the same gradients in less time."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one arm reaches.

    Attributes:
        auc: On the hold-out users.
        rate: The learning rate that was chosen.
        scores: (hold-out users,), for paired comparisons.
    """

    auc: float
    rate: float
    scores: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """AUC of all trained layers less that of the contract's own number.

    Attributes:
        all_layers, default: The two AUCs.
        error: Standard error of their difference over the hold-out users (DeLong et al. 1988).
    """

    all_layers: float
    default: float
    error: float


def judge_arms(
    texts: TextSet, *, users: int, epochs: int, batch: int, stage: Callable[[str], None]
) -> tuple[dict[Arm, Judged], NDArray[np.float32]]:
    """Train every arm but ghost clipping, which is the recipe's mechanism once more.

    Args:
        texts: Whose pooled users train, and are held out.
        users: Training users, the validation part among them, and hold-out users at most.
        epochs: Times that a user is expected to take part.
        batch: Expected rows of a step.
        stage: Told what begins.

    Returns:
        What each arm reaches, and the hold-out users' labels.
    """
    known = spread(texts.train, users)
    held_out = spread(texts.holdout, users)
    every = round(1 / VALIDATION)
    parts = _Parts(
        train=[r for i, r in enumerate(known) if i % every],
        validation=known[::every],
        holdout=held_out,
    )
    plain = Schedule(users=len(parts.train), batch=batch, noise_multiplier=1.0)
    steps = epochs * plain.steps_an_epoch
    privacy = texts.contract.privacy
    assert privacy.epsilon is not None  # packaged contracts are private
    sigma = solve_noise_multiplier(plain.sampling_rate, steps, privacy.epsilon, privacy.delta)
    schedule = replace(plain, noise_multiplier=sigma)
    judged: dict[Arm, Judged] = {}
    for name, mode in RECIPES.items():
        if mode != "ghost":
            stage(f"{texts.name}: AUC of {name}")
            judged[name, None] = _judge_recipe(texts, parts, schedule, steps, name)
    for k in depths(texts.contract):
        stage(f"{texts.name}: AUC of {OURS}, k = {k}")
        judged |= _judge_engine(texts, parts, schedule, steps, k)
    return judged, _labels(parts.holdout)


def default_difference(texts: TextSet, *, users: int, draws: int = 1) -> Difference:
    """Whether the contract's own number of layers is enough, under the contract as it is.

    Central over pooled users of all holders, with the wide part, by the contract's own schedule and
    settings but for LoRA's learning rate, which validation users choose for each number of layers
    among `FACTORS` times the contract's. Every hold-out user judges. The scores of a few trainings
    are averaged, so that less of the noise of one remains.
    """
    contract = texts.packaged
    known, every = spread(texts.train, users), round(1 / VALIDATION)
    train, validation = [r for i, r in enumerate(known) if i % every], known[::every]
    labels = _labels(texts.holdout)
    scores = {}
    for k in (depth(resolve_backbone(contract.model)), contract.model.layers):
        central = replace(
            contract,
            model=replace(contract.model, layers=k),
            privacy=replace(contract.privacy, size_classes=(("bench", len(train)),)),
        )
        engine = Engine(central, train)
        parts = [Examples(engine.model, central, own) for own in (validation, texts.holdout)]
        scores[k] = _best_scores(engine, central, parts, _labels(validation), draws)
    top, own = scores.values() if len(scores) == 2 else (*scores.values(), *scores.values())
    return Difference(
        all_layers=auc_exact(top, labels),
        default=auc_exact(own, labels),
        error=paired_error(top, own, labels),
    )


def _best_scores(
    engine: Engine,
    contract: Contract,
    parts: Sequence[Examples],
    labels: NDArray[np.float32],
    draws: int,
) -> NDArray[np.float32]:
    """Scores of the second part at the learning rate that serves the first part best."""
    training = contract.training
    found = []
    for factor in FACTORS:
        rates = replace(training.learning_rate, lora=factor * training.learning_rate.lora)
        engine.retune(contract, rates)
        runs: list[list[NDArray[np.float32]]] = [[], []]
        for seed in range(draws):
            engine.fit(training.rounds * training.steps, seed)
            for own, part in zip(runs, parts, strict=True):
                own.append(engine.scores(part))
        chosen, judged = (np.mean(own, axis=0) for own in runs)
        found.append((auc_exact(chosen, labels), judged))
    best: NDArray[np.float32] = max(found, key=lambda run: run[0])[1]
    return best


@dataclass(frozen=True, kw_only=True)
class _Parts:
    train: list[Record]
    validation: list[Record]
    holdout: list[Record]


def _judge_recipe(
    texts: TextSet, parts: _Parts, schedule: Schedule, steps: int, name: str
) -> Judged:
    spec = texts.contract.model
    train, validation, holdout = (
        [record_text(texts.contract, r) for r in part]
        for part in (parts.train, parts.validation, parts.holdout)
    )
    runs = []
    for rate in RATES:
        recipe = Recipe(
            resolve_backbone(spec).folder,
            spec,
            train,
            _labels(parts.train),
            RECIPES[name],
            batch=schedule.batch,
            noise_multiplier=schedule.noise_multiplier,
            rate=rate,
            physical=PHYSICAL,
        )
        recipe.steps(steps)
        runs.append((auc_exact(recipe.scores(validation), _labels(parts.validation)), rate, recipe))
    _, rate, best = max(runs, key=lambda run: run[0])
    return _judged(best.scores(holdout), rate, parts)


def _judge_engine(
    texts: TextSet, parts: _Parts, schedule: Schedule, steps: int, layers: int
) -> dict[Arm, Judged]:
    """Both arms of the engine at one k; the frozen layers run once for them and every rate."""
    contract = at_layers(texts.contract, layers, schedule)
    engine = Engine(contract, parts.train)
    validation = Examples(engine.model, contract, parts.validation)
    held_out = Examples(engine.model, contract, parts.holdout)
    judged: dict[Arm, Judged] = {}
    for name, own in ((OURS_OPEN, contract.without_privacy()), (OURS, contract)):
        runs = []
        for rate in RATES:
            engine.retune(own, LearningRates(lora=rate, head=rate))
            engine.fit(steps, 0)
            chosen = auc_exact(engine.scores(validation), _labels(parts.validation))
            runs.append((chosen, rate, engine.adapter))
        _, rate, engine.adapter = max(runs, key=lambda run: run[0])
        judged[name, layers] = _judged(engine.scores(held_out), rate, parts)
    return judged


def _judged(scores: NDArray[np.float32], rate: float, parts: _Parts) -> Judged:
    return Judged(auc=auc_exact(scores, _labels(parts.holdout)), rate=rate, scores=scores)


def _labels(records: Sequence[Record]) -> NDArray[np.float32]:
    return np.asarray([record.label for record in records], np.float32)
