"""The benchmark of training as figures, rows and notes."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from credit_simulations.bench.engine import depths
from credit_simulations.bench.measured import Value
from credit_simulations.bench.quality import RATES, Difference, Judged
from credit_simulations.bench.texts import TextSet
from credit_simulations.bench.timing import BASE, OURS, OURS_OPEN, Arm, Times, ratio, slowdown


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        users: Of the biggest holder, for the times; at most.
        epochs: Over which the cache build is shared.
        repeats: Repetitions of the times.
        least_seconds: CPU seconds of an arm in a repetition, at least.
        least_steps: Steps of the engine in a repetition, at least: the size of its batches varies,
            the rows that it computes are fixed by the plan.
        batch: Expected rows of a step.
        auc_users: Pooled training users, and hold-out users, of the AUCs; 0 for no AUC.
        auc_epochs: Epochs of the AUCs.
        pooled_users: Training users of `auc_difference`.
        draws: Trainings that are averaged in it.
        memory: Whether peak memory is measured.
    """

    users: int = 1000
    epochs: int = 30
    repeats: int = 5
    least_seconds: float = 0.3
    least_steps: int = 3
    batch: int = 64
    auc_users: int = 400
    auc_epochs: int = 3
    pooled_users: int = 1500
    draws: int = 1
    memory: bool = True


QUICK = Sizes(
    users=48,
    repeats=1,
    least_seconds=0.0,
    least_steps=1,
    batch=16,
    auc_users=0,
    pooled_users=0,
    memory=False,
)
"""For a look at whether it runs: its figures mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What was measured on one set of texts.

    Attributes:
        texts: The set.
        tokens: Of each timed user's text.
        times: Of every arm.
        users: Timed users.
        judged: What an arm's AUC is; empty where none was asked for.
        difference: Of all layers and the contract's own; None where it was not asked for.
        errors: Standard error of the difference of an arm's AUC to the recipe's.
    """

    texts: TextSet
    tokens: Sequence[int]
    times: Mapping[Arm, Times]
    users: int
    judged: Mapping[Arm, Judged]
    difference: Difference | None
    errors: Mapping[Arm, float]


def figures_of(
    main: Sequence[Compared], peaks: Mapping[Arm, float], sizes: Sizes
) -> dict[str, Value]:
    """The ratios that the benchmark is read by: the worse of the main sets."""
    every = depths(main[0].texts.contract)
    figures: dict[str, Value] = {}
    for k in every:
        name = "ratio_all_layers" if k == every[-1] else f"ratio_k{k}"
        figures[name] = min(_ratio(s, (OURS, k), sizes) for s in main)
    kept = {k: min(slowdown(s.times[OURS, k], s.times[OURS_OPEN, k]) for s in main) for k in every}
    figures["dp_over_no_dp_min"] = min(share for k, share in kept.items() if k > 1)
    figures["dp_over_no_dp_k1"] = kept[1]
    own = main[0].texts.contract.model.layers
    for name, k in (("memory_ratio", own), ("memory_ratio_all_layers", every[-1])):
        figures[name] = peaks[OURS, k] / peaks[BASE, None] if peaks else None
    figures["auc_difference"] = auc_difference(main)
    return figures


def auc_difference(sets: Sequence[Compared]) -> float | None:
    """What the contract's own number of layers costs in AUC, at most; negative where it gains."""
    gaps = [d.all_layers - d.default for s in sets if (d := s.difference) is not None]
    return max(gaps) if gaps else None


def row_of(s: Compared, arm: Arm, peaks: Mapping[Arm, float], sizes: Sizes) -> dict[str, Value]:
    """One arm on one set of texts."""
    times, judged = s.times[arm], s.judged.get(arm)
    name, k = arm
    built = statistics.median(times.cache_s)
    peak = peaks.get((OURS, k) if k else arm)
    if name == OURS_OPEN:
        peak = None
    return {
        "texts": s.texts.name,
        "arm": name,
        "k": k,
        "tokens_mean": round(statistics.mean(s.tokens), 1),
        "tokens_max": max(s.tokens),
        "examples_per_s": times.examples_per_s,
        "ratio": _ratio(s, arm, sizes),
        "cache_s": built if k else None,
        "cache_mib": times.cache_mib if k else None,
        "peak_mib": peak,
        "auc": judged.auc if judged else None,
        "auc_se": s.errors.get(arm),
        "rate": judged.rate if judged else None,
    }


def quality_row(s: Compared, arm: Arm) -> dict[str, Value]:
    """The AUC of one arm on one set of texts."""
    judged = s.judged[arm]
    return {
        "texts": s.texts.name,
        "arm": arm[0],
        "k": arm[1],
        "auc": judged.auc,
        "auc_se": s.errors[arm],
        "rate": judged.rate,
    }


def _ratio(s: Compared, arm: Arm, sizes: Sizes) -> float:
    return ratio(s.times[BASE, None], s.times[arm], s.users, sizes.epochs)


def time_notes(main: Sequence[Compared], sizes: Sizes) -> list[str]:
    """How times and memory were measured."""
    every = depths(main[0].texts.contract)[-1]
    return [
        f"Recipe: LoRA by peft on all {every} layers, padded to the longest text of the set, the "
        "checkpoint's dropout, Opacus by hooks; one thread, float32, CPU time, medians of "
        f"{sizes.repeats} paired repetitions, the arms taking turns.",
        f"ratio: CPU time of the recipe over the arm's for {sizes.epochs} epochs of the biggest "
        f"holder's users (at most {sizes.users}), the engine's cache build counted in; the figures "
        f"are the smaller of those on {' and '.join(s.texts.name for s in main)}.",
        "k: trained top layers, LoRA and head, without the wide part; the recipe trains all.",
        "peak_mib: above the loaded model, two steps on 64 texts that fill 128 tokens, the frozen "
        "layers' run over them included; it does not depend on the row's texts.",
    ]


def quality_notes(sets: Sequence[Compared], sizes: Sizes) -> list[str]:
    """How AUCs were measured."""
    notes = []
    if sizes.auc_users:
        notes.append(
            f"auc: {sizes.auc_users} pooled training users (a quarter of them chooses the learning "
            f"rate of AdamW among {', '.join(f'{r:g}' for r in RATES)}, the others train), "
            f"{sizes.auc_epochs} epochs, at most {sizes.auc_users} hold-out users of all holders, "
            "the epsilon and delta of its contract; auc_se is the standard error "
            "of its difference to the recipe's. Ghost clipping is the recipe's mechanism once more "
            "and is not trained. "
            "The recipe's physical batches are sorted by length here, which changes no gradient."
        )
    for s in sets:
        if s.difference is not None:
            d = s.difference
            notes.append(
                f"auc_difference, {s.texts.packaged.federation.name} under its own contract: all "
                f"layers {d.all_layers:.4f}, its own {s.texts.packaged.model.layers} "
                f"{d.default:.4f}, standard error of the difference {d.error:.4f}; central over "
                f"{sizes.pooled_users} pooled users, mean scores of {sizes.draws} trainings; "
                "LoRA's learning rate is chosen on a quarter of them. The figure is what the "
                "contract's own number of layers costs: negative where it is ahead."
            )
    return notes
