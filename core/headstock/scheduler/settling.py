"""What the result of a step means for its requests."""

from __future__ import annotations

from headstock.requests import FinishReason
from headstock.scheduler.counters import Counters
from headstock.scheduler.drafting import Drafting
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
        drafting: Takes in what drafts were worth.
    """

    def __init__(
        self, residence: Residence, register: Register, counters: Counters, drafting: Drafting
    ) -> None:
        self._residence = residence
        self._cache = residence.cache
        self._register = register
        self._counters = counters
        self._drafting = drafting

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
            self._drafting.settle(flight, result)
        drawn = Drawn()
        finished = self._take_tokens(flight, result, drawn)
        if result.logprobs:
            # Requests without a token of this step may be added.
            drawn.requests, drawn.counts = list(drawn.requests), list(drawn.counts)
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

        Where every row drew for a request that still wants it, ``drawn`` has the result's columns.
        """
        requests, counts, ids, done = flight.sampled, result.counts, result.ids, result.done
        finished: list[Request] = []
        if 0 in counts or True in [each.is_over or not each.max_outputs for each in requests]:
            requests, counts, ids, done = _wanted(flight, result, finished)
        outputs = [request.outputs for request in requests]
        drawn.requests, drawn.counts, drawn.token_ids = requests, counts, ids
        drawn.offsets = list(map(len, outputs))
        ready: list[tuple[Request, int]] = []
        end = 0
        for request, known, count, is_done in zip(requests, outputs, counts, done, strict=True):
            if count == 1:
                known.append(ids[end])
                end += 1
            else:
                assert flight.queries, f"slot {request.slot} drew {count} tokens of 1"
                known += ids[end : end + count]
                end += count
            if is_done or len(known) >= request.look_at:
                ready.append((request, is_done))
        for request, is_done in ready:
            if is_done or len(request.outputs) >= request.max_outputs:
                finished.append(request)
            else:
                known = min(request.num_known, request.computed)
                self._residence.publish(request, known, request.last_step)
        self._counters.generation_tokens += len(ids)
        return finished


def _wanted(
    flight: Flight, result: StepResult, finished: list[Request]
) -> tuple[list[Request], list[int], list[int], list[int]]:
    """Return requests, counts, ids and ``done`` of the rows whose tokens are wanted.

    Those of requests that ended meanwhile are not, nor what a request draws that wants none: it is
    added to ``finished``.
    """
    requests: list[Request] = []
    counts: list[int] = []
    ids: list[int] = []
    done: list[int] = []
    end = 0
    for request, count, is_done in zip(flight.sampled, result.counts, result.done, strict=True):
        begin = end
        end += count
        if count == 0 or request.is_over:
            continue
        if not request.max_outputs:
            finished.append(request)
            continue
        requests.append(request)
        counts.append(count)
        ids += result.ids[begin:end]
        done.append(is_done)
    return requests, counts, ids, done


def _shrink(flight: Flight, result: StepResult) -> None:
    """Take from the bounds what the step's drafts did not yield."""
    columns = zip(flight.sampled, flight.queries, result.counts, strict=True)
    for request, query, count in columns:
        assert count <= query, f"slot {request.slot} drew {count} tokens of {query}"
        if not request.is_over and count:
            request.computed -= query - count
            request.drawn += count - 1
