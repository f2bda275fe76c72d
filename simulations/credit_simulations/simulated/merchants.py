"""Simulated merchants that differ in size, clientele, prices, departments and writing style."""

from dataclasses import dataclass

import numpy as np

from credit_simulations.simulated.completejourney import DEPARTMENT_SHARES
from credit_simulations.simulated.draws import Floats, stream

SIZE_SPREAD = 0.6
"""Standard deviation of the log of the merchants' sizes."""
RISK_SPREAD = 0.3
"""Standard deviation of the merchants' share in the logit of a default of those at home there."""
PRICE_SPREAD = 0.15
"""Standard deviation of the log of the merchants' price levels."""
MIX_CONCENTRATION = 6.0
"""Of the Dirichlet distribution of department mixes around the real shares; small, unlike mixes."""
STYLES = ("plain", "lower", "chatty", "terse", "formal")
"""How reviews read at a merchant; see `words`."""


@dataclass(frozen=True, kw_only=True)
class Merchant:
    """One simulated holder.

    Attributes:
        name: "simulated-shop-" and a running number.
        weight: Share of shoppers that are at home here.
        risk: Added to the logit of those who are at home here; mean 0 over shoppers.
        price: Added to the log value of baskets.
        mix: Share of each department, shape (departments,).
        style: One of `STYLES`.
    """

    name: str
    weight: float
    risk: float
    price: float
    mix: Floats
    style: str


def draw_merchants(seed: int, merchants: int) -> tuple[Merchant, ...]:
    """Draw merchants; the same seed and number give the same ones."""
    random = stream(seed, "merchants")
    weight = np.exp(SIZE_SPREAD * random.standard_normal(merchants))
    weight /= weight.sum()
    risk = RISK_SPREAD * random.standard_normal(merchants)
    risk -= (weight * risk).sum()
    price = PRICE_SPREAD * random.standard_normal(merchants)
    shares = np.array(DEPARTMENT_SHARES) / sum(DEPARTMENT_SHARES)
    mix = random.dirichlet(MIX_CONCENTRATION * shares, merchants)
    first = random.integers(len(STYLES))
    digits = max(2, len(str(merchants)))
    return tuple(
        Merchant(
            name=f"simulated-shop-{i + 1:0{digits}d}",
            weight=float(weight[i]),
            risk=float(risk[i]),
            price=float(price[i]),
            mix=mix[i],
            style=STYLES[(first + i) % len(STYLES)],
        )
        for i in range(merchants)
    )
