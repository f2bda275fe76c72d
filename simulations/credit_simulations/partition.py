"""One data set -> the holders of a simulated federation.

Natural holders come from a column. Artificial ones are drawn: alike (`iid`), of unlike default
rates (`dirichlet`, Hsu et al. 2019), or of unlike sizes (`quantity`). A row is in one holder at
most; prepared data has one row per user, so a user is at one holder, but for `simulated-shops`,
whose users shop at several. The seed of a partition is public: it shapes the simulation and has no
part in any privacy mechanism.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from credit_common.errors import CreditError
from credit_simulations.data import slug, write_parquet

DRAWS = 1000
"""Draws of a random partition before it is given up."""

Parts = dict[str, pd.DataFrame]
"""Holder -> its rows, in the data set's order."""


def by_column(frame: pd.DataFrame, column: str, min_rows: int = 1) -> Parts:
    """One holder for each value of a column; holders of fewer than `min_rows` are left out.

    Raises:
        CreditError: If the column is not there or no holder is big enough.
    """
    if column not in frame.columns:
        raise CreditError(f"no column {column!r} to take the holders from")
    groups = frame.groupby(frame[column].astype(str), sort=True)
    parts = {
        str(name): rows.reset_index(drop=True) for name, rows in groups if len(rows) >= min_rows
    }
    if not parts:
        raise CreditError(f"column {column!r}: no holder has {min_rows} rows")
    return parts


def biggest(frame: pd.DataFrame, column: str, n: int) -> Parts:
    """The `n` biggest holders of a column, the biggest first; equal sizes by name.

    Raises:
        CreditError: If there are fewer than `n`.
    """
    parts = by_column(frame, column)
    if not 1 <= n <= len(parts):
        raise CreditError(f"holders = {n}: must be between 1 and {len(parts)} for {column!r}")
    names = sorted(parts, key=lambda name: (-len(parts[name]), name))
    return {name: parts[name] for name in names[:n]}


def iid(frame: pd.DataFrame, holders: int, seed: int) -> Parts:
    """Holders of equal size and alike, by a shuffle."""
    _check(frame, holders)
    rows = np.random.default_rng(seed).permutation(len(frame))
    return _named(frame, np.array_split(rows, holders))


def quantity(
    frame: pd.DataFrame, holders: int, alpha: float, seed: int, min_rows: int = 1
) -> Parts:
    """Holders alike but of sizes in Dirichlet(alpha) proportions; small alpha, unlike sizes."""
    _check(frame, holders, alpha)
    random = np.random.default_rng(seed)
    rows = random.permutation(len(frame))
    for _ in range(DRAWS):
        parts = np.split(rows, _cuts(random, len(rows), holders, alpha))
        if min(map(len, parts)) >= min_rows:
            return _named(frame, parts)
    raise CreditError(_hopeless(holders, alpha, min_rows))


def dirichlet(
    frame: pd.DataFrame, label: str, holders: int, alpha: float, seed: int, min_rows: int = 1
) -> Parts:
    """Holders of unlike label shares: each label's rows in Dirichlet(alpha) proportions.

    Draws are repeated until each holder has `min_rows`.

    Raises:
        CreditError: If an argument is out of its range, or `DRAWS` draws did not do.
    """
    if label not in frame.columns:
        raise CreditError(f"no label column {label!r}")
    _check(frame, holders, alpha)
    random = np.random.default_rng(seed)
    codes = frame[label].astype(str).to_numpy()
    for _ in range(DRAWS):
        parts: list[list[NDArray[np.intp]]] = [[] for _ in range(holders)]
        for code in sorted(set(codes)):
            rows = random.permutation(np.flatnonzero(codes == code))
            cuts = _cuts(random, len(rows), holders, alpha)
            for part, piece in zip(parts, np.split(rows, cuts), strict=True):
                part.append(piece)
        joined = [np.concatenate(part) for part in parts]
        if min(map(len, joined)) >= min_rows:
            return _named(frame, joined)
    raise CreditError(_hopeless(holders, alpha, min_rows))


def write_shards(parts: Mapping[str, pd.DataFrame], folder: Path) -> dict[str, Path]:
    """Write each holder's rows as a Parquet file.

    Returns:
        Holder -> its file, named after the holder in letters, digits and hyphens.

    Raises:
        CreditError: If two holders' names would share a file.
    """
    paths = {name: folder / f"{slug(name)}.parquet" for name in parts}
    if len(set(paths.values())) != len(paths):
        raise CreditError("two holders' names differ in signs only, their files would be one")
    for name, path in paths.items():
        write_parquet(parts[name], path)
    return paths


def _cuts(random: np.random.Generator, rows: int, holders: int, alpha: float) -> NDArray[np.intp]:
    shares = random.dirichlet(np.full(holders, alpha))
    return np.round(np.cumsum(shares)[:-1] * rows).astype(np.intp)


def _named(frame: pd.DataFrame, parts: list[NDArray[np.intp]]) -> Parts:
    digits = len(str(len(parts)))
    return {
        f"holder-{number:0{digits}d}": frame.iloc[np.sort(rows)].reset_index(drop=True)
        for number, rows in enumerate(parts, start=1)
    }


def _check(frame: pd.DataFrame, holders: int, alpha: float = 1.0) -> None:
    if not 1 <= holders <= len(frame):
        raise CreditError(f"holders = {holders}: must be between 1 and {len(frame)} rows")
    if not 1e-3 <= alpha <= 1e6:  # Dirichlet draws turn into NaN further down
        raise CreditError(f"alpha = {alpha}: must be between 0.001 and 1000000")


def _hopeless(holders: int, alpha: float, min_rows: int) -> str:
    return (
        f"{DRAWS} draws gave no partition in which each of {holders} holders has {min_rows} rows; "
        f"take fewer holders or an alpha above {alpha}"
    )
