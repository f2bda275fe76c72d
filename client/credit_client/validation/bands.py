"""Gain, lift and KS by score band: tenths of the users, the riskiest first.

Users of one score are never split: they are all in the band where the first of them is, so that
bands may differ in size and one that nobody is in is left out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BANDS = 10


@dataclass(frozen=True, kw_only=True)
class Band:
    """Users of neighbouring scores.

    Attributes:
        number: From 1, the riskiest.
        users, bads: Users, and defaults among them.
        pd_low, pd_high: Least and most PD of them.
        points_low, points_high: Least and most scorecard points of them.
        bad_rate: bads / users.
        lift: Bad rate over that of all users.
        gain: Share of all defaults in this band and riskier ones.
        goods: Share of all other users in this band and riskier ones.
        users_share: Share of all users in this band and riskier ones.
        cumulative_lift: gain / users_share.
        ks: gain - goods, the distance of the two distributions at the band's end.
    """

    number: int
    users: int
    bads: int
    pd_low: float
    pd_high: float
    points_low: float
    points_high: float
    bad_rate: float
    lift: float
    gain: float
    goods: float
    users_share: float
    cumulative_lift: float
    ks: float


def band_of(logits: NDArray[np.float64], count: int = BANDS) -> NDArray[np.int64]:
    """Each user's band from 0, the riskiest: the users that are riskier, as a share of all.

    >>> band_of(np.array([0.3, 0.1, 0.2, 0.2]), 4).tolist()
    [0, 3, 1, 1]
    """
    order = np.sort(logits)
    riskier = logits.size - np.searchsorted(order, logits, "right")
    return (riskier * count // logits.size).astype(np.int64)


def score_bands(
    logits: NDArray[np.float64],
    pds: NDArray[np.float64],
    points: NDArray[np.float64],
    labels: NDArray[np.int64],
) -> tuple[Band, ...]:
    """The bands of users (users,) of both classes."""
    place, bads_of_all = band_of(logits), int(labels.sum())
    bands, users, bads = [], 0, 0
    for number in range(BANDS):
        own = place == number
        if not own.any():
            continue
        users, bads = users + int(own.sum()), bads + int(labels[own].sum())
        gain, share = bads / bads_of_all, users / labels.size
        goods = (users - bads) / (labels.size - bads_of_all)
        rate = float(labels[own].mean())
        bands.append(
            Band(
                number=number + 1,
                users=int(own.sum()),
                bads=int(labels[own].sum()),
                pd_low=float(pds[own].min()),
                pd_high=float(pds[own].max()),
                points_low=float(points[own].min()),
                points_high=float(points[own].max()),
                bad_rate=rate,
                lift=rate / float(labels.mean()),
                gain=gain,
                goods=goods,
                users_share=share,
                cumulative_lift=gain / share,
                ks=gain - goods,
            )
        )
    return tuple(bands)
