"""What the result of a step means for its requests."""

from __future__ import annotations

from headstock.requests import FinishReason
from headstock.scheduler.counters import Counters
from headstock.scheduler.flight import Drawn, Flight
from headstock.scheduler.register import Register
from headstock.scheduler.request import Request
from headstock.scheduler.residence import Residence
from headstock.wire.steps import StepResult


class Settling:
    """Takes in what steps drew.

    Args:
        residence: The requests' pages.
        register: The live requests.
        counters: Where steps and tokens are counted.
    """

    def __init__(self, residence: Residence, register: Register, counters: Counters) -> None:
        self._residence = residence
        self._cache = residence.cache
        self._register = register
        self._counters = counters

    def settle(self, flight: Flight, result: StepResult) -> Drawn:
        """Take in what ``flight`` drew; returns what is to be published."""
        self._cache.settle(flight.step)
        self._counters.steps += 1
        by_slot: dict[int, Request] = {}
        if result.faults or result.logprobs or result.pooled:
            by_slot = flight.by_slot()
        for fault in result.faults:
            request = by_slot[fault.slot]
            if not request.is_over:
                self._residence.withdraw(request)
                self._register.fail(request, fault.message)
            elif not request.is_failed:
                # It was aborted meanwhile: which pages it wrote is not known any more.
                self._cache.withdraw_since(flight.step)
        if flight.queries:
            _shrink(flight, result)
        drawn = Drawn()
        finished = self._take_tokens(flight, result, drawn)
        for logprobs in result.logprobs:
            request = by_slot[logprobs.slot]
            if not request.is_over:
                drawn.add_logprobs(request, logprobs)
        for pooled in result.pooled:
            request = by_slot[pooled.slot]
            if not request.is_over:
                drawn.add_vector(request, pooled.values)
                self._register.end(request, FinishReason("stop"))
        for request in finished:
            # The last token's keys and values are never written: the slot was done before.
            known = min(request.num_known - 1, request.computed)
            self._residence.publish(request, known, request.last_step)
            self._register.end_complete(request)
        return drawn

    def _take_tokens(self, flight: Flight, result: StepResult, drawn: Drawn) -> list[Request]:
        """Append the drawn tokens to their requests' outputs; returns those that are finished.

        Tokens of requests that ended meanwhile are dropped.
        """
        finished: list[Request] = []
        ids, token_ids = result.ids, drawn.token_ids
        end = 0
        for request, count, is_done in zip(flight.sampled, result.counts, result.done, strict=True):
            begin = end
            end += count
            if count == 0 or request.is_over:
                continue
            outputs = request.outputs
            if request.max_outputs:
                drawn.requests.append(request)
                drawn.offsets.append(len(outputs))
                drawn.counts.append(count)
                if count == 1:
                    token = ids[begin]
                    token_ids.append(token)
                    outputs.append(token)
                else:
                    assert flight.queries, f"slot {request.slot} drew {count} tokens of 1"
                    token_ids += ids[begin:end]
                    outputs += ids[begin:end]
            if is_done or len(outputs) >= request.max_outputs:
                finished.append(request)
            elif len(outputs) >= request.publish_at:
                known = min(request.num_known, request.computed)
                self._residence.publish(request, known, request.last_step)
        self._counters.generation_tokens += len(token_ids)
        return finished


def _shrink(flight: Flight, result: StepResult) -> None:
    """Take from the bounds what the step's drafts did not yield."""
    columns = zip(flight.sampled, flight.queries, result.counts, strict=True)
    for request, query, count in columns:
        assert count <= query, f"slot {request.slot} drew {count} tokens of {query}"
        if not request.is_over and count:
            request.computed -= query - count
            request.drawn += count - 1
