"""Requests with LoRA adapters: they wait here while theirs is read; then the scheduler has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from headstock.errors import HeadstockError
from headstock.requests import FinishReason
from headstock.scheduler import Scheduler
from headstock.wire.messages import (
    AdapterReply,
    FromEngine,
    LoadAdapter,
    Submit,
    UnloadAdapter,
)

UNKNOWN = "adapter_not_found"


class Shelf(Protocol):
    """Where adapters wait for a place on the device; ``lora.AdapterLibrary`` is one."""

    def fetch(self, adapter: str, path: str) -> None:
        """Begin to read the adapter in the folder ``path``."""
        ...

    def fetched(self) -> Sequence[tuple[str, HeadstockError | None]]:
        """Return the adapters that were read since the last call, or why they were not."""
        ...

    def drop(self, adapter: str) -> None:
        """Forget an adapter; no plan will name it any more."""
        ...

    def close(self) -> None:
        """End what reads."""
        ...


class AdapterDesk:
    """Knows which adapters there are, and keeps requests until theirs is read.

    Args:
        scheduler: Plans with adapters.
        shelf: Reads them; None: there is no room for any.
        hand_on: Takes the requests whose adapters are there.

    Attributes:
        calls: By adapter that is being read, who asked for it; :meth:`take_read` is called soon
            while there is any.
        waiting: Requests whose adapters are being read, by id.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        shelf: Shelf | None,
        hand_on: Callable[[Submit, float], None],
    ) -> None:
        self._scheduler, self._shelf, self._hand_on = scheduler, shelf, hand_on
        self._ready: set[str] = set()
        self.calls: dict[str, list[int]] = {}
        self.waiting: dict[str, Submit] = {}

    def load(self, message: LoadAdapter) -> FromEngine | None:
        """Begin to read an adapter; returns the answer where there is one already."""
        if self._shelf is None:
            return AdapterReply(
                call=message.call,
                problem="This server was started without room for adapters.",
                remedy="Start it with --lora or --max-loras.",
            )
        if message.adapter in self._ready:
            return AdapterReply(call=message.call)
        calls = self.calls.setdefault(message.adapter, [])
        calls.append(message.call)
        if len(calls) == 1:
            self._shelf.fetch(message.adapter, message.path)
        return None

    def unload(self, message: UnloadAdapter) -> list[FromEngine]:
        """Forget an adapter; what waits or runs with it ends."""
        adapter = message.adapter
        replies: list[FromEngine] = [
            AdapterReply(call=call, problem="The adapter was unloaded meanwhile.")
            for call in self.calls.pop(adapter, ())
        ]
        for submit in [s for s in self.waiting.values() if s.adapter == adapter]:
            self._refuse(submit, "The adapter was unloaded.")
        self._scheduler.end_adapter(adapter, _gone("The adapter was unloaded."))
        self._ready.discard(adapter)
        if self._shelf is not None:
            self._shelf.drop(adapter)
        replies.append(AdapterReply(call=message.call))
        return replies

    def take(self, submit: Submit, now_s: float) -> None:
        """Hand on ``submit``, once its adapter, if it has one, is read.

        Of two with the id of one that waits here the later attempt counts, whatever it names.
        """
        earlier = self.waiting.get(submit.id)
        if earlier is not None:
            if earlier.attempt >= submit.attempt:
                return
            self.abort(submit.id, "The request was sent again.")
        if not submit.adapter or submit.adapter in self._ready:
            self._hand_on(submit, now_s)
        elif submit.adapter in self.calls:
            self.waiting[submit.id] = submit
        else:
            self._refuse(submit, "The request's adapter is not loaded.")

    def take_read(self, now_s: float) -> list[FromEngine]:
        """Hand on the requests whose adapters are read by now; returns the answers."""
        replies: list[FromEngine] = []
        for adapter, error in self._shelf.fetched() if self._shelf is not None else ():
            calls = self.calls.pop(adapter, None)
            if calls is None:
                continue  # unloaded while it was read
            waiting = [s for s in self.waiting.values() if s.adapter == adapter]
            if error is None:
                self._ready.add(adapter)
                replies += [AdapterReply(call=call) for call in calls]
                for submit in waiting:
                    del self.waiting[submit.id]
                    self._hand_on(submit, now_s)
                continue
            replies += [
                AdapterReply(call=call, problem=error.problem, remedy=error.remedy)
                for call in calls
            ]
            for submit in waiting:
                self._refuse(submit, f"The adapter could not be loaded: {error.problem}")
        return replies

    def abort(self, request_id: str, message: str = "The request was aborted.") -> None:
        """End a request that waits here; does nothing when there is none of that id."""
        submit = self.waiting.pop(request_id, None)
        if submit is not None:
            self._scheduler.refuse(submit, FinishReason("abort", message=message))

    def abort_all(self) -> None:
        """End every request that waits here."""
        for request_id in list(self.waiting):
            self.abort(request_id, "All requests were aborted.")

    def close(self) -> None:
        """End what reads."""
        if self._shelf is not None:
            self._shelf.close()

    def _refuse(self, submit: Submit, message: str) -> None:
        self.waiting.pop(submit.id, None)
        self._scheduler.refuse(submit, _gone(message))


def _gone(message: str) -> FinishReason:
    return FinishReason("error", message=message, code=UNKNOWN)
