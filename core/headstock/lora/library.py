"""The adapters that a rank knows: read in a thread, kept on the host, copied into places."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from headstock.errors import AdapterError, HeadstockError, describe
from headstock.lora.modules import AdaptedModules, HostMemory, Packed
from headstock.lora.peft import open_adapter

log = logging.getLogger(__name__)

PackedAdapter = dict[int, Packed]


class AdapterLibrary:
    """Keeps adapters ready to be copied into the places that a model has for them.

    All but the reading itself is called from one thread.

    Args:
        modules: Where adapters go.
        memory: Where they wait.
        max_adapters: How many may be known.
    """

    def __init__(self, modules: AdaptedModules, memory: HostMemory, max_adapters: int) -> None:
        self._modules, self._memory, self._max_adapters = modules, memory, max_adapters
        self._known: dict[str, Future[PackedAdapter]] = {}
        self._unseen: list[str] = []
        self._placed: dict[int, PackedAdapter] = {}
        """By place, what was copied there last: the copy may still be under way."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapters")

    def fetch(self, adapter: str, path: str) -> None:
        """Begin to read the adapter in the folder ``path``; see :meth:`fetched`."""
        if adapter not in self._known:
            self._known[adapter] = self._begin(path)
        self._unseen.append(adapter)

    def fetched(self) -> Sequence[tuple[str, HeadstockError | None]]:
        """Return the adapters that were read since the last call, or why they were not."""
        done = [adapter for adapter in self._unseen if self._is_over(adapter)]
        self._unseen = [adapter for adapter in self._unseen if adapter not in done]
        return [(adapter, self._failure(adapter)) for adapter in done]

    def drop(self, adapter: str) -> None:
        """Forget an adapter; no plan will name it any more."""
        reading = self._known.pop(adapter, None)
        if reading is not None:
            reading.cancel()

    def place(self, place: int, adapter: str) -> None:
        """Queue the copy of ``adapter`` into ``place``, 1 to the places there are.

        Waits where it is still being read, as on ranks that learn of it with the plan.

        Raises:
            AdapterError: It could not be read here.
        """
        assert adapter in self._known, f"place {place} is to hold {adapter}, which is not known"
        packed = self._known[adapter].result()
        for number, layer in enumerate(self._modules.layers):
            layer.place(place, packed.get(number))
        self._placed[place] = packed

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _begin(self, path: str) -> Future[PackedAdapter]:
        if len(self._known) >= self._max_adapters:
            full: Future[PackedAdapter] = Future()
            full.set_exception(
                AdapterError(
                    f"{len(self._known)} adapters are loaded, as many as may be.",
                    remedy="Unload one, or start the server with a larger --max-loaded-loras.",
                )
            )
            return full
        return self._thread.submit(self._read, path)

    @torch.inference_mode()
    def _read(self, path: str) -> PackedAdapter:
        return self._modules.pack(open_adapter(Path(path)), self._memory)

    def _is_over(self, adapter: str) -> bool:
        reading = self._known.get(adapter)
        return reading is None or reading.done()

    def _failure(self, adapter: str) -> HeadstockError | None:
        """Return why an adapter could not be read, and forget it then."""
        reading = self._known.get(adapter)
        if reading is None or reading.cancelled():
            self._known.pop(adapter, None)
            return AdapterError("The adapter was unloaded meanwhile.", remedy="Load it again.")
        error = reading.exception()
        if error is None:
            return None
        del self._known[adapter]
        if isinstance(error, HeadstockError):
            return error
        # The boundary of a file from anywhere: whatever it trips over, it alone is refused.
        log.error("An adapter cannot be read", exc_info=error)
        return AdapterError(
            f"The adapter cannot be read: {describe(error)}.", remedy="See the log."
        )
