"""`credit-sim bench training`: our engine beside the recipe that a user would write."""

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from credit_common.delong import paired_error
from credit_common.errors import FetchError
from credit_simulations.bench.compared import (
    Compared,
    Sizes,
    auc_difference,
    figures_of,
    quality_notes,
    quality_row,
    row_of,
    time_notes,
)
from credit_simulations.bench.engine import depths
from credit_simulations.bench.measured import Measured
from credit_simulations.bench.memory import peak_mib
from credit_simulations.bench.quality import (
    Difference,
    Judged,
    default_difference,
    judge_arms,
)
from credit_simulations.bench.texts import MAIN, TextSet, load_texts
from credit_simulations.bench.timing import (
    BASE,
    OURS,
    RECIPES,
    Arm,
    Times,
    time_arms,
    token_lengths,
)


def measure_training(
    names: Sequence[str], sizes: Sizes, command: str, stage: Callable[[str], None]
) -> Measured:
    """Time, weigh and judge every arm on every set of texts.

    Args:
        names: Of `texts.TEXTS`; one whose data set cannot be had is left out with a note.
        sizes: How much.
        command: The command line that does this again.
        stage: Told what begins.

    Raises:
        FetchError: If no set can be had.
    """
    found, notes = _loaded(names, stage)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    timed = {t.name: time_arms(t, **_timing(sizes), stage=stage) for t in found}
    peaks = _peaks(found[0], stage) if sizes.memory else {}
    torch.set_num_threads(threads)  # an AUC is the same on all of them
    sets = [_judge(t, timed[t.name], sizes, stage) for t in found]
    main = [s for s in sets if s.texts.name in MAIN] or sets
    return Measured(
        title="training: our engine beside the recipe that a user would write",
        command=command,
        figures=figures_of(main, peaks, sizes),
        rows=[row_of(s, arm, peaks, sizes) for s in sets for arm in s.times],
        notes=[*notes, *time_notes(main, sizes), *quality_notes(sets, sizes)],
    )


def measure_quality(
    names: Sequence[str], sizes: Sizes, command: str, stage: Callable[[str], None]
) -> Measured:
    """The AUCs of `measure_training` alone; arguments and errors are its own."""
    found, notes = _loaded(names, stage)
    sets = [_judge(t, {}, sizes, stage) for t in found]
    return Measured(
        title="training: the AUC that each arm reaches at the same epsilon and epochs",
        command=command,
        figures={"auc_difference": auc_difference(sets)},
        rows=[quality_row(s, arm) for s in sets for arm in s.judged],
        notes=[*notes, *quality_notes(sets, sizes)],
    )


def _loaded(names: Sequence[str], stage: Callable[[str], None]) -> tuple[list[TextSet], list[str]]:
    """The sets that can be had, and notes on machine and on those that cannot."""
    found, notes = [], _machine()
    for name in names:
        stage(f"reading {name}")
        try:
            found.append(load_texts(name))
        except FetchError as error:
            notes.append(f"{name} is left out: {error}.")
    if not found:
        raise FetchError(f"none of these data sets can be had: {', '.join(names)}")
    return found, notes


def _timing(sizes: Sizes) -> dict[str, Any]:
    return {
        "users": sizes.users,
        "batch": sizes.batch,
        "repeats": sizes.repeats,
        "least_seconds": sizes.least_seconds,
        "least_steps": sizes.least_steps,
    }


def _peaks(texts: TextSet, stage: Callable[[str], None]) -> dict[Arm, float]:
    arms: list[Arm] = [(name, None) for name in RECIPES]
    arms += [(OURS, k) for k in depths(texts.contract)]
    peaks = {}
    for arm in arms:
        stage(f"peak memory of {arm[0]}" + (f", k = {arm[1]}" if arm[1] else ""))
        peaks[arm] = peak_mib(arm, texts.name)
    return peaks


def _judge(
    texts: TextSet, times: Mapping[Arm, Times], sizes: Sizes, stage: Callable[[str], None]
) -> Compared:
    judged: dict[Arm, Judged] = {}
    errors: dict[Arm, float] = {}
    difference: Difference | None = None
    if sizes.auc_users:
        judged, labels = judge_arms(
            texts,
            users=sizes.auc_users,
            epochs=sizes.auc_epochs,
            batch=sizes.batch,
            stage=stage,
        )
        base = judged[BASE, None].scores
        errors = {arm: paired_error(j.scores, base, labels) for arm, j in judged.items()}
    if sizes.pooled_users and texts.name in MAIN:
        stage(f"{texts.name}: AUC of all layers and of the contract's own")
        difference = default_difference(texts, users=sizes.pooled_users, draws=sizes.draws)
    return Compared(
        texts=texts,
        tokens=token_lengths(texts, sizes.users),
        times=times,
        users=min(sizes.users, len(texts.biggest)),
        judged=judged,
        difference=difference,
        errors=errors,
    )


def _machine() -> list[str]:
    """The processor and the versions that figures of time depend on."""
    info = Path("/proc/cpuinfo")
    found = info.read_text() if info.exists() else ""
    flags = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in found]
    model = next((x.split(": ")[1] for x in found.splitlines() if x.startswith("model name")), "")
    packages = ("torch", "opacus", "peft", "transformers")
    said = ", ".join(f"{name} {version(name)}" for name in packages)
    return [f"{model or platform.processor()} ({', '.join(flags) or platform.machine()}); {said}."]
