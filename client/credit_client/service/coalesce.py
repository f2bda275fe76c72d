"""Records of many requests, scored together: one model thread, one forward pass at a time.

Whatever waits when a pass ends goes into the next one; nobody waits for company, so a lone request
is scored at once. Single records go before those of large batches, which are scored piece by piece.
What is counted is rows of the model: a record whose reasons are asked for is one for itself and one
for each field.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from credit_client.scoring.reasons import Attribution, adverse, attributions, scored_fields
from credit_client.service.opened import Opened
from credit_common.record import Record

ROWS = 64
"""Rows of a pass at most, but for a record that has more by itself."""
BESIDE = 8
"""Rows of large batches in a pass that single records wait for, or one record's."""

log = logging.getLogger(__name__)


class BusyError(Exception):
    """More waits than may wait, or the score has not come in time."""


class EngineError(Exception):
    """The model has failed on a record."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Raw scores (n, outputs) of a request's records, and each one's reasons if asked for."""

    scores: NDArray[np.float32]
    reasons: list[list[Attribution]]


@dataclass(eq=False, kw_only=True)
class _Job:
    opened: Opened
    records: Sequence[Record]
    most: int
    rows: int  # of each record
    answer: "asyncio.Future[Scores]"
    parts: list[Scores] = field(default_factory=list)
    taken: int = 0


_Piece = tuple[_Job, Sequence[Record]]
OnPass = Callable[[int, float, int], None]
"""Called after each pass with its rows, its seconds, and the rows that wait then."""


class Coalescer:
    """The queue before the model of one worker."""

    def __init__(self, *, waiting: int, deadline: float, on_pass: OnPass) -> None:
        self._most_waiting = waiting
        self._deadline = deadline
        self._on_pass = on_pass
        self._single: deque[_Job] = deque()
        self._large: deque[_Job] = deque()
        self._turn_of_large = False
        self._awake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.waiting = 0
        """Rows that no pass has taken yet."""

    async def score(self, opened: Opened, records: Sequence[Record], most: int = 0) -> Scores:
        """Scores of records by one release, with at most so many reasons each.

        Raises:
            BusyError: If there is no room for them, or the deadline has passed.
            EngineError: If the model fails.
        """
        each = 1 + len(scored_fields(opened.contract)) if most else 1
        # Single records go before large batches: only one another can keep them waiting.
        single = len(records) == 1
        ahead = sum(job.rows for job in self._single) if single else self.waiting
        # One that is alone is let in whatever its size: no later attempt would find more room.
        if ahead and ahead + each * len(records) > self._most_waiting:
            raise BusyError("too many requests are waiting")
        answer: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        job = _Job(opened=opened, records=records, most=most, rows=each, answer=answer)
        (self._single if single else self._large).append(job)
        self.waiting += each * len(records)
        self._awake.set()
        try:
            return await asyncio.wait_for(answer, self._deadline)
        except TimeoutError:
            raise BusyError("the deadline has passed") from None

    async def run(self) -> None:
        """Score what comes, until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                pieces = self._take()
                if not pieces:
                    self._awake.clear()
                    await self._awake.wait()
                    continue
                start = time.perf_counter()
                done = await loop.run_in_executor(self._thread, _score, pieces)
                rows = sum(job.rows * len(records) for job, records in pieces)
                self._on_pass(rows, time.perf_counter() - start, self.waiting)
                for (job, _), part in zip(pieces, done, strict=True):
                    _settle(job, part)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> list[_Piece]:
        """The next pass: pieces of jobs that are scored by the same release."""
        for queue in (self._single, self._large):
            while queue and queue[0].answer.done():  # nobody waits for it any more
                gone = queue.popleft()
                self.waiting -= gone.rows * (len(gone.records) - gone.taken)
        single, large = self._single, self._large
        if not (single and large):
            return self._pieces(single or large, ROWS)
        if single[0].opened is not large[0].opened:
            # After a swap, turn about: else a batch would wait for as long as single ones come.
            self._turn_of_large = not self._turn_of_large
            return (
                self._pieces(large, BESIDE) if self._turn_of_large else self._pieces(single, ROWS)
            )
        beside = max(BESIDE, large[0].rows)
        return self._pieces(single, ROWS - beside) + self._pieces(large, beside)

    def _pieces(self, queue: deque[_Job], room: int) -> list[_Piece]:
        """What is next in a queue, by one release: rows up to `room`, but one record at least."""
        pieces: list[_Piece] = []
        while queue and (not pieces or queue[0].opened is pieces[0][0].opened):
            job = queue[0]
            count = max(room // job.rows, 0 if pieces else 1)
            piece = job.records[job.taken : job.taken + count]
            if not piece:
                break
            job.taken += len(piece)
            room -= job.rows * len(piece)
            self.waiting -= job.rows * len(piece)
            pieces.append((job, piece))
            if job.taken == len(job.records):
                queue.popleft()
        return pieces


def _score(pieces: list[_Piece]) -> list[Scores | EngineError]:
    """One pass; where it fails, each piece by itself, so that one record spoils no other."""
    try:
        return list(_pass(pieces))
    except Exception as error:  # whatever the model trips over, other requests' records go on
        if len(pieces) == 1:
            # Its text could hold a value: the kind alone is told.
            log.error("a pass of the model failed: %s", type(error).__name__)
            return [EngineError(type(error).__name__)]
    return [done for piece in pieces for done in _score([piece])]


def _pass(pieces: list[_Piece]) -> list[Scores]:
    opened = pieces[0][0].opened
    records = [record for _, piece in pieces for record in piece]
    scores = opened.engine.score(records, filled=False)
    if not np.isfinite(scores).all():
        raise FloatingPointError("a score is not finite")
    done, start = [], 0
    for job, piece in pieces:
        own = scores[start : start + len(piece)]
        reasons: list[list[Attribution]] = [[] for _ in piece]
        if job.most:
            found = attributions(opened.engine, piece, own, filled=False)
            reasons = [adverse(every, job.most) for every in found]
        done.append(Scores(scores=own, reasons=reasons))
        start += len(piece)
    return done


def _settle(job: _Job, part: Scores | EngineError) -> None:
    if job.answer.done():
        return
    if isinstance(part, EngineError):
        job.answer.set_exception(part)
        return
    job.parts.append(part)
    if sum(len(done.scores) for done in job.parts) == len(job.records):
        scores = np.concatenate([done.scores for done in job.parts])
        reasons = [own for done in job.parts for own in done.reasons]
        job.answer.set_result(Scores(scores=scores, reasons=reasons))
