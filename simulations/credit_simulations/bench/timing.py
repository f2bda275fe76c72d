"""CPU time of every arm on the same users, the arms taking turns in each repetition."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from credit_common.backbone import load_tokenizer, resolve_backbone, token_ids
from credit_common.text import record_text
from credit_simulations.bench.engine import Engine, Schedule, at_layers, depths
from credit_simulations.bench.recipes import Mode, Recipe
from credit_simulations.bench.texts import TextSet, spread

RECIPES: dict[str, Mode] = {"recipe": "hooks", "recipe ghost": "ghost", "recipe no dp": "none"}
BASE = "recipe"
"""Every ratio is to this arm."""
OURS, OURS_OPEN = "engine", "engine no dp"
MOST_STEPS = 100

Arm = tuple[str, int | None]
"""What runs, and its trained layers; None for a recipe, which trains all of them."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Times of one arm.

    Attributes:
        example_s: CPU seconds of an example in a step, one a repetition: an example that was drawn
            for a recipe; for the engine one that is expected, q times users times steps.
        cache_s: CPU seconds of the frozen layers over all users, measured in every second
            repetition and kept for the next; 0 for a recipe.
        cache_mib: What is kept of them.
    """

    example_s: tuple[float, ...]
    cache_s: tuple[float, ...]
    cache_mib: float

    @property
    def examples_per_s(self) -> float:
        """Median over the repetitions, the cache not counted."""
        return 1.0 / statistics.median(self.example_s)


def ratio(base: Times, arm: Times, users: int, epochs: int) -> float:
    """How many times less CPU time an arm takes for some epochs, its cache counted in.

    The median over the repetitions of paired ratios.
    """
    return statistics.median(
        epochs * b / (cache / users + epochs * own)
        for b, own, cache in zip(base.example_s, arm.example_s, arm.cache_s, strict=True)
    )


def slowdown(private: Times, plain: Times) -> float:
    """Examples a second with privacy over without, the median of paired ratios."""
    pairs = zip(private.example_s, plain.example_s, strict=True)
    return statistics.median(other / own for own, other in pairs)


def time_arms(
    texts: TextSet,
    *,
    users: int,
    batch: int,
    repeats: int,
    least_seconds: float,
    least_steps: int,
    stage: Callable[[str], None],
) -> dict[Arm, Times]:
    """Time every arm.

    Args:
        texts: Whose biggest holder's users train.
        users: At most so many of them.
        batch: Expected rows of a step.
        repeats: Repetitions after the warm-up.
        least_seconds: An arm takes steps until so much CPU time went by, in every repetition.
        least_steps: Steps of the engine in a repetition, at least.
        stage: Told what begins.
    """
    records = spread(texts.biggest, users)
    schedule = Schedule(users=len(records), batch=batch, noise_multiplier=1.0)
    spec = texts.contract.model
    folder = resolve_backbone(spec).folder
    said = [record_text(texts.contract, record) for record in records]
    labels = np.asarray([record.label for record in records], np.float32)
    stage(f"{texts.name}: warm-up")
    recipes = {
        name: Recipe(folder, spec, said, labels, mode, batch=batch)
        for name, mode in RECIPES.items()
    }
    engines = {
        k: Engine(at_layers(texts.contract, k, schedule), records) for k in depths(texts.contract)
    }
    seconds: dict[Arm, list[float]] = {}
    caches: dict[Arm, list[float]] = {}
    built: dict[int, float] = {}
    steps = {k: _warm(engine, least_seconds, least_steps) for k, engine in engines.items()}
    for recipe in recipes.values():
        recipe.steps(1)
    for turn in range(repeats):
        stage(f"{texts.name}: repetition {turn + 1} of {repeats}")
        for name, recipe in recipes.items():
            seconds.setdefault((name, None), []).append(_recipe_seconds(recipe, least_seconds))
            caches.setdefault((name, None), []).append(0.0)
        for k, engine in engines.items():
            if turn % 2 == 0:  # the longest part, and the one that varies least
                built[k] = engine.encode()
            expected = schedule.sampling_rate * schedule.users * steps[k]
            private, drawn = engine.private_steps(steps[k])
            plain = engine.open_steps(drawn)
            for name, took in ((OURS_OPEN, plain), (OURS, private)):
                seconds.setdefault((name, k), []).append(took / expected)
                caches.setdefault((name, k), []).append(built[k])
    return {
        arm: Times(
            example_s=tuple(taken),
            cache_s=tuple(caches[arm]),
            cache_mib=0.0 if arm[1] is None else engines[arm[1]].cache_mib(),
        )
        for arm, taken in seconds.items()
    }


def token_lengths(texts: TextSet, users: int) -> Sequence[int]:
    """Tokens of each timed user's text, cut as in every arm."""
    spec = texts.contract.model
    said = [record_text(texts.contract, r) for r in spread(texts.biggest, users)]
    found = token_ids(load_tokenizer(resolve_backbone(spec)), said, spec.tokens)
    return [len(ids) for ids in found]


def _warm(engine: Engine, least_seconds: float, least_steps: int) -> int:
    """Encode, run both kinds of steps, and say how many steps fill `least_seconds`."""
    engine.encode()
    _, drawn = engine.private_steps(1)
    engine.open_steps(drawn)
    took, _ = engine.private_steps(1)
    return min(MOST_STEPS, max(least_steps, math.ceil(least_seconds / max(took, 1e-6))))


def _recipe_seconds(recipe: Recipe, least_seconds: float) -> float:
    drawn, start = 0, time.process_time()
    while True:
        drawn += recipe.steps(1)
        took = time.process_time() - start
        if took >= least_seconds and drawn:
            return took / drawn
