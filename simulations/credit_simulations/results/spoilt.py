"""What typing errors, missing fields and missing text do to each arm's AUC."""

from collections.abc import Iterable

from credit_simulations.results.arms import label, level
from credit_simulations.results.grid import Grid
from credit_simulations.results.rows import groups, mean_of
from credit_simulations.results.trials import Trial

_WAYS = {"clean": "as they are", "typos": "typing errors", "no_text": "without free text"}
_WAYS["missing_fields"] = "a fifth of the fields missing"


def spoilt_grid(trials: Iterable[Trial]) -> Grid:
    """AUC over the same users, their records as they are and spoilt; means over seeds."""
    asked = [trial for trial in trials if trial.perturbed]
    ways = list(dict.fromkeys([*_WAYS, *(way for trial in asked for way in trial.perturbed)]))
    ways = [way for way in ways if any(way in trial.perturbed for trial in asked)]
    cells = []
    for (setting, arm, epsilon), found in groups(asked).items():
        means = [mean_of(trial.perturbed.get(way) for trial in found) for way in ways]
        where = (setting.data, setting.partition, str(setting.holders), label(arm), level(epsilon))
        cells.append((*where, *("" if mean is None else f"{mean:.3f}" for mean in means)))
    heads = ("data", "partition", "holders", "arm", "ε", *(_WAYS.get(way, way) for way in ways))
    return Grid(title="AUC of spoilt records, mean over seeds", heads=heads, cells=cells, left=5)
