import asyncio
import contextlib
import threading

import numpy as np
import pytest

from credit_client.scoring.reasons import scored_fields
from credit_client.service.coalesce import BESIDE, ROWS, BusyError, Coalescer, EngineError
from credit_client.service.opened import Opened
from credit_common.record import Record


class Engine:
    """Scores a record by its number; each pass waits until it may go on."""

    def __init__(self, contract, held=False):
        self.contract = contract
        self.passes = []
        self.go = threading.Event()
        if not held:
            self.go.set()

    def score(self, records, filled=True):
        numbers = [record.values["x"] for record in records]
        self.passes.append(numbers)
        assert self.go.wait(10)
        if -1.0 in numbers:
            raise ValueError("SENTINEL")
        return np.array([[2.0 * number] for number in numbers], np.float32)


def some(*numbers):
    return [Record(values={"x": float(x)}, protected={}, label=None) for x in numbers]


@contextlib.asynccontextmanager
async def running(waiting=1000, deadline=10.0):
    passes = []
    own = Coalescer(waiting=waiting, deadline=deadline, on_pass=lambda *pass_: passes.append(pass_))
    task = asyncio.create_task(own.run())
    try:
        yield own, passes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def opened(engine):
    return Opened(release=None, engine=engine)


async def begun(engine, passes=1):
    """Waits until a pass is in the model."""
    while len(engine.passes) < passes:
        await asyncio.sleep(0.001)


def numbers(done):
    return done.scores[:, 0].tolist()


def test_what_waits_while_a_pass_runs_goes_into_the_next_one(contract):
    async def main():
        engine = Engine(contract, held=True)
        one = opened(engine)
        async with running() as (own, passes):
            jobs = [asyncio.create_task(own.score(one, some(0)))]
            await begun(engine)
            jobs += [asyncio.create_task(own.score(one, some(i))) for i in range(1, 31)]
            await asyncio.sleep(0)
            assert own.waiting == 30
            engine.go.set()
            done = await asyncio.gather(*jobs)
        assert [numbers(own) for own in done] == [[2.0 * i] for i in range(31)]
        assert [len(pass_) for pass_ in engine.passes] == [1, 30]
        assert [(rows, left) for rows, _, left in passes] == [(1, 30), (30, 0)]

    asyncio.run(main())


def test_a_lone_request_waits_for_nobody(contract):
    async def main():
        engine = Engine(contract)
        async with running() as (own, _):
            loop, times = asyncio.get_running_loop(), []
            for i in range(20):
                start = loop.time()
                await own.score(opened(engine), some(i))
                times.append(loop.time() - start)
        assert min(times) < 0.005  # a fixed wait would be in each
        assert len(engine.passes) == 20

    asyncio.run(main())


def test_a_large_batch_is_scored_in_pieces_and_single_records_go_first(contract):
    async def main():
        engine = Engine(contract, held=True)
        one = opened(engine)
        async with running() as (own, _):
            first = asyncio.create_task(own.score(one, some(-5)))
            await begun(engine)
            large = asyncio.create_task(own.score(one, some(*range(150))))
            single = [asyncio.create_task(own.score(one, some(1000 + i))) for i in range(3)]
            await asyncio.sleep(0)
            engine.go.set()
            await asyncio.gather(*single)
            done = await large
            await first
        assert numbers(done) == [2.0 * i for i in range(150)]
        assert engine.passes[1] == [1000, 1001, 1002, *range(BESIDE)]
        sizes = [len(pass_) for pass_ in engine.passes[2:]]
        assert sizes == [ROWS, ROWS, 150 - BESIDE - 2 * ROWS]

    asyncio.run(main())


def test_a_pass_is_by_one_release(contract):
    async def main():
        old, new = Engine(contract, held=True), Engine(contract)
        async with running() as (own, _):
            before, after = opened(old), opened(new)
            jobs = [asyncio.create_task(own.score(before, some(0)))]
            await begun(old)
            jobs += [asyncio.create_task(own.score(before, some(i))) for i in (1, 2)]
            jobs.append(asyncio.create_task(own.score(after, some(3))))
            await asyncio.sleep(0)
            old.go.set()
            await asyncio.gather(*jobs)
        assert old.passes == [[0], [1, 2]]
        assert new.passes == [[3]]

    asyncio.run(main())


def test_a_batch_of_the_release_before_goes_on_while_single_records_come(contract):
    async def main():
        old, new = Engine(contract, held=True), Engine(contract)
        async with running() as (own, _):
            before, after = opened(old), opened(new)
            first = asyncio.create_task(own.score(before, some(-5)))
            await begun(old)
            large = asyncio.create_task(own.score(before, some(*range(5 * BESIDE))))
            single, done = [], 0
            old.go.set()
            while not large.done():
                if sum(not one.done() for one in single) < 100:  # or the queue's end comes first
                    single.append(asyncio.create_task(own.score(after, some(len(single)))))
                await asyncio.sleep(0)
            done = sum(len(pass_) for pass_ in new.passes)
            assert numbers(await large) == [2.0 * i for i in range(5 * BESIDE)]
            await asyncio.gather(first, *single)
        assert old.passes[1:] == [[*range(i, i + BESIDE)] for i in range(0, 5 * BESIDE, BESIDE)]
        assert done > 0  # single ones went on as well

    asyncio.run(main())


def test_the_queue_has_an_end(contract):
    async def main():
        engine = Engine(contract, held=True)
        one = opened(engine)
        async with running(waiting=5) as (own, _):
            jobs = [asyncio.create_task(own.score(one, some(0)))]
            await begun(engine)
            jobs.append(asyncio.create_task(own.score(one, some(1, 2, 3))))
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="too many"):
                await own.score(one, some(4, 5, 6))
            jobs.append(asyncio.create_task(own.score(one, some(7, 8))))
            await asyncio.sleep(0)
            engine.go.set()
            await asyncio.gather(*jobs)
            assert own.waiting == 0

    asyncio.run(main())


def test_reasons_count_as_the_rows_that_they_are(contract):
    each = 1 + len(scored_fields(contract))
    assert 5 < each < ROWS // 2

    async def main():
        engine = Engine(contract, held=True)
        one = opened(engine)
        async with running(waiting=70 * each) as (own, passes):
            jobs = [asyncio.create_task(own.score(one, some(0)))]
            await begun(engine)
            jobs.append(asyncio.create_task(own.score(one, some(*range(100, 130)), 2)))
            jobs += [asyncio.create_task(own.score(one, some(i), 2)) for i in range(1, 31)]
            await asyncio.sleep(0)
            assert own.waiting == 60 * each
            with pytest.raises(BusyError, match="too many"):
                await own.score(one, some(*range(11)), 2)
            engine.go.set()
            await asyncio.gather(*jobs)
            assert own.waiting == 0
            assert max(rows for rows, *_ in passes) <= ROWS
            assert sum(rows for rows, *_ in passes) == 1 + 60 * each
            # Nothing waits, so that there will never be more room for it.
            assert len(numbers(await own.score(one, some(*range(80)), 2))) == 80
        scored = [n for pass_ in engine.passes for n in pass_]
        assert len(scored) <= 1 + each * (60 + 80)
        # The batch has a record in every pass that single ones go before it in.
        assert 100 in engine.passes[1]
        assert engine.passes[1][0] == 1

    asyncio.run(main())


def test_a_large_batch_that_waits_keeps_no_single_record_out(contract):
    async def main():
        engine = Engine(contract, held=True)
        one = opened(engine)
        async with running(waiting=5) as (own, _):
            large = asyncio.create_task(own.score(one, some(*range(100, 140)), 2))
            await begun(engine)
            single = asyncio.create_task(own.score(one, some(7), 2))
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="too many"):
                await own.score(one, some(1, 2))
            engine.go.set()
            assert numbers(await single) == [14.0]
            assert not large.done()
            await large

    asyncio.run(main())


def test_a_request_past_its_deadline_is_given_up_and_never_scored(contract):
    async def main():
        engine = Engine(contract, held=True)
        one = opened(engine)
        async with running(deadline=0.05) as (own, _):
            first = asyncio.create_task(own.score(one, some(0)))
            await begun(engine)
            with pytest.raises(BusyError, match="deadline"):
                await own.score(one, some(1))
            with pytest.raises(BusyError, match="deadline"):
                await first
            engine.go.set()
            assert numbers(await own.score(one, some(2))) == [4.0]
            assert own.waiting == 0
        assert engine.passes == [[0], [2]]

    asyncio.run(main())


def test_a_record_that_fails_spoils_no_other(contract, caplog):
    async def main():
        engine = Engine(contract, held=True)
        one = opened(engine)
        async with running() as (own, _):
            jobs = [asyncio.create_task(own.score(one, some(0)))]
            await begun(engine)
            jobs += [asyncio.create_task(own.score(one, some(x))) for x in (1, -1, 3)]
            jobs.append(asyncio.create_task(own.score(one, some(4, 5))))
            await asyncio.sleep(0)
            engine.go.set()
            done = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(done[2], EngineError)
        rest = [numbers(own) for i, own in enumerate(done) if i != 2]
        assert rest == [[0.0], [2.0], [6.0], [8.0, 10.0]]

    asyncio.run(main())
    assert "ValueError" in caplog.text
    assert "SENTINEL" not in caplog.text
