"""A holder's own calibration: what the release's score means among its users.

The federation's model ranks users of all holders; the share of defaults behind a score differs from
holder to holder. A calibration is fitted at the holder, on users that the model was not trained on,
and stays there: it is made of their outcomes without noise, so it is the holder's own like its file
of records, and no message to the coordinator carries it. Whoever is told calibrated PDs, by the
service or in a file, learns of it too.
"""

import dataclasses
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from credit_client.complete import draft_of
from credit_common.checked import build
from credit_common.errors import ContractError, ShardError

Method = Literal["platt", "isotonic"]
METHODS: tuple[Method, ...] = ("platt", "isotonic")

FORMAT = 1
FEWEST = {"platt": 50, "isotonic": 1000}
"""Users that a method needs; isotonic regression overfits fewer (Niculescu-Mizil, Caruana 2005)."""
FEWEST_OF_EACH = 5
"""Users with, and without, a default that any method needs."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A rising function from a logit to a probability of default (PD).

    Attributes:
        method: "platt": 1 / (1 + exp(-(slope * logit + intercept))) (Platt 1999); "isotonic":
            straight lines between `knots`, level beyond them (Zadrozny, Elkan 2002).
        release: SHA-256 of the release whose logits it is for.
        users: Users that it was fitted on.
        slope, intercept: Of "platt", slope > 0.
        knots: (logit, PD), rising, of "isotonic".
    """

    method: Method
    release: str
    users: int
    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.method == "platt" and self.slope <= 0:
            raise ContractError(f"calibration.slope = {self.slope:g}: must be positive")
        if self.method == "isotonic":
            xs, ys = [x for x, _ in self.knots], [y for _, y in self.knots]
            rising = all(a < b for a, b in pairwise(xs))
            rising = rising and all(a <= b for a, b in pairwise(ys))
            if not (xs and rising and ys[0] > 0 and ys[-1] < 1):
                raise ContractError("calibration.knots: must rise, with PDs inside (0, 1)")

    def apply(self, logits: ArrayLike) -> NDArray[np.float64]:
        """PDs of logits, the same shape, each inside (0, 1) but for rounding."""
        raw = np.asarray(logits, np.float64)
        if self.method == "isotonic":
            xs, ys = np.array(self.knots).T
            return np.asarray(np.interp(raw, xs, ys))
        turned = self.slope * raw + self.intercept
        small = np.exp(-np.abs(turned))  # never overflows
        pd: NDArray[np.float64] = np.where(turned >= 0, 1.0, small) / (1.0 + small)
        return pd


def fit(method: Method, logits: ArrayLike, labels: ArrayLike, release: str) -> Calibration:
    """Fit a calibration to outcomes.

    Platt's targets are (defaults + 1) / (defaults + 2) and 1 / (repaid + 2) in place of 1 and 0, so
    that a small file cannot ask for certainty; the ends of an isotonic fit keep 1 / (users + 2)
    from 0 and 1 for the same reason.

    Args:
        method: How.
        logits: (users,), of users that the model was not trained on.
        labels: (users,), 1 for a default and 0 for none.
        release: Its digest.

    Raises:
        ShardError: If there are too few users, or the scores order them backwards.
    """
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    raw, events = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    users, bad = len(raw), int(events.sum())
    check_enough(users, bad, FEWEST[method], f"a calibration by {method}")
    good = users - bad
    if method == "isotonic":
        least = 1.0 / (users + 2)
        found = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
        found.fit(raw, events)
        xs, ys = found.X_thresholds_.tolist(), found.y_thresholds_.tolist()
        if ys[0] == ys[-1]:
            raise ShardError(_BACKWARDS)
        return Calibration(
            method=method, release=release, users=users, knots=tuple(zip(xs, ys, strict=True))
        )
    targets = np.where(events == 1, (bad + 1) / (bad + 2), 1 / (good + 2))
    # Each user stands once as a default and once as none, with the weights of its target.
    twice = np.concatenate([raw, raw])[:, None]
    outcomes = np.concatenate([np.ones(users), np.zeros(users)])
    line = LogisticRegression(C=np.inf, tol=1e-8)
    line.fit(twice, outcomes, sample_weight=np.concatenate([targets, 1 - targets]))
    slope, intercept = float(line.coef_[0, 0]), float(line.intercept_[0])
    if slope <= 0:
        raise ShardError(_BACKWARDS)
    return Calibration(
        method=method, release=release, users=users, slope=slope, intercept=intercept
    )


def check_enough(users: int, bad: int, fewest: int, what: str) -> None:
    """Refuse figures of too few users.

    Raises:
        ShardError: With the count and the bound.
    """
    if users < fewest:
        raise ShardError(f"{what}: {users} users with an outcome, must be at least {fewest}")
    if min(bad, users - bad) < FEWEST_OF_EACH:
        raise ShardError(
            f"{what}: {bad} of {users} users defaulted, must be {FEWEST_OF_EACH} with and without"
        )


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration for its owner's eyes alone; a file that is there is replaced.

    Raises:
        ShardError: If it cannot be written.
    """
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(calibration)}, indent=1) + "\n"
    with draft_of(path, "the calibration") as draft:
        draft.write_text(text, encoding="utf-8")


def read_calibration(path: Path, release: str) -> Calibration:
    """A calibration for a release.

    Raises:
        ShardError: If it cannot be read, or is for another release.
    """
    try:
        plain: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
            raise ShardError(f"{path}: is not a calibration of format {FORMAT}")
        found = build(Calibration, plain, "calibration")
    except OSError as error:
        raise ShardError(f"cannot read the calibration {path}: {error.strerror}") from None
    except (ValueError, ContractError) as error:
        why = error if isinstance(error, ContractError) else "is not JSON"
        raise ShardError(f"{path}: {why}") from None
    if found.release != release:
        raise ShardError(
            f"{path}: is for the release {found.release[:16]}, not for {release[:16]}; make one "
            "with credit-client calibrate"
        )
    return found


_BACKWARDS = "the release's scores do not rise with the defaults of these users: not calibrated"
