"""Newer releases: found, opened beside the one that scores, compared, and swapped in.

A folder of releases has them by number, as `flower-server` and `credit-client` write them. A single
release can be another one later too, where its path is a link that is set anew.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress

from credit_client.service.opened import Opened
from credit_client.service.places import Place, places
from credit_client.service.serving import Serving
from credit_common.errors import CreditError
from credit_common.release import Release, open_release

Open = Callable[[Release], Opened]
"""Makes the engine of a release, warm."""

EVERY_SECONDS = 1.0
"""Between two looks."""

log = logging.getLogger(__name__)


class Watch:
    """Looks for newer releases of one worker."""

    def __init__(self, serving: Serving, place: Place, open_: Open) -> None:
        self._serving, self._place, self._open = serving, place, open_
        self._passed: set[Place] = set()
        self._told: set[str] = set()
        self._now = asyncio.Event()

    def look_again(self) -> None:
        """Look at once, at those that were passed by too: what they lack may be there now."""
        self._passed.clear()
        self._now.set()

    async def run(self) -> None:
        """Look every second, until cancelled."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._now.wait(), EVERY_SECONDS)
            self._now.clear()
            await self.look()

    async def look(self) -> bool:
        """Swap to the newest release that can be; returns whether there was one."""
        loop = asyncio.get_running_loop()
        for place in await loop.run_in_executor(None, lambda: list(self._newer())):
            try:
                release = await loop.run_in_executor(None, open_release, place.folder)
                other = _other(release, self._serving.opened.release)
                if other:
                    self._pass_by(place, "refused", f"{place.folder}: {other}")
                    continue
                opened = await loop.run_in_executor(None, self._open, release)
            except CreditError as error:
                self._pass_by(place, "broken", str(error))
                continue
            except Exception as error:  # whatever is wrong with it, what scores goes on scoring
                self._pass_by(place, "broken", f"{place.folder}: {type(error).__name__}")
                continue
            self._serving.swap(opened)
            self._place = place
            self._serving.figures.swaps.labels("swapped").inc()
            log.info("now scoring by %s, %s", place.folder, release.digest)
            return True
        return False

    def _newer(self) -> Iterator[Place]:
        for place in places(self._serving.settings.release):
            if place.number < self._place.number or place == self._place:
                return
            if place not in self._passed:
                yield place

    def _pass_by(self, place: Place, outcome: str, why: str) -> None:
        self._passed.add(place)
        self._serving.figures.swaps.labels(outcome).inc()
        if why not in self._told:
            self._told.add(why)
            before = self._serving.opened.release.folder
            log.error("NOT swapped, still scoring by %s: %s", before, why)


def _other(new: Release, old: Release) -> str:
    """Why a release cannot take another's place, or nothing."""
    if new.contract.federation.name != old.contract.federation.name:
        return f"is of another federation, {new.contract.federation.name}"
    if new.contract.digest != old.contract.digest:
        return (
            f"its contract is {new.contract.digest[:12]}, records are read by "
            f"{old.contract.digest[:12]}; start the service anew for it"
        )
    return ""
