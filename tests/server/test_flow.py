"""What a connection waits with."""

import asyncio

import pytest

from headstock.server.http.flow import Flow, Pipeline, Signal


class Transport:
    """Notes what it is asked."""

    def __init__(self):
        self.said = []

    def pause_reading(self):
        self.said.append("pause")

    def resume_reading(self):
        self.said.append("resume")


def test_a_signal_wakes_who_waits_and_lets_pass_who_comes_later():
    async def main():
        signal = Signal()
        waiting = asyncio.create_task(signal.wait())
        await asyncio.sleep(0)
        assert not signal.is_set()
        assert not waiting.done()
        signal.set()
        signal.set()
        assert await waiting
        assert await signal.wait()
        signal.clear()
        again = asyncio.create_task(signal.wait())
        await asyncio.sleep(0)
        assert not again.done()
        signal.set()
        assert await again

    asyncio.run(main())


def test_who_was_cancelled_while_waiting_leaves_room_for_another():
    async def main():
        signal = Signal()
        first = asyncio.create_task(signal.wait())
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(signal.wait())
        await asyncio.sleep(0)
        signal.set()
        assert await second

    asyncio.run(main())


def test_a_signal_that_is_unset_before_its_waiter_runs_is_waited_for_again():
    async def main():
        signal = Signal()
        waiting = asyncio.create_task(signal.wait())
        await asyncio.sleep(0)
        signal.set()
        signal.clear()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        signal.set()
        assert await waiting

    asyncio.run(main())


def test_flow_holds_writers_back_until_the_client_reads():
    async def main():
        transport = Transport()
        flow = Flow(transport)  # type: ignore[arg-type]
        await flow.drain()
        flow.pause_writing()
        writing = asyncio.create_task(flow.drain())
        await asyncio.sleep(0)
        assert not writing.done()
        flow.resume_writing()
        await writing
        flow.pause_reading()
        flow.pause_reading()
        flow.resume_reading()
        assert transport.said == ["pause", "resume"]

    asyncio.run(main())


def test_requests_of_a_pipeline_are_taken_in_their_order():
    pipeline = Pipeline()
    assert not pipeline
    for number in range(3):
        pipeline.appendleft(number)
    assert [pipeline.pop() for _ in range(3)] == [0, 1, 2]
