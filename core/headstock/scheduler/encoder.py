"""Images of requests: which must be encoded before a chunk, and where their features lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headstock.cache import FeatureStore, StoredItem
from headstock.scheduler.request import Request
from headstock.wire.media import Encode, Features, MediaItem, MediaLimits


class EncoderBudget:
    """What the encoder can do in a step, and the pages that its features take.

    An image is held from the first chunk that has some of its tokens to the last. Who holds one can
    always go on, so someone can; everyone else's chunk ends before an image without room.

    Args:
        limits: Of the runner.
        step_tokens: Tokens of images that a step encodes; of one that has more, all.
    """

    name = "encoder"
    can_be_passed = False

    def __init__(self, limits: MediaLimits | None, step_tokens: int) -> None:
        size = (1, 1) if limits is None else (limits.num_pages, limits.page_tokens)
        self.store = FeatureStore(*size)
        self._is_whole = limits is not None and limits.is_whole
        self._step_tokens = step_tokens
        self._left = step_tokens
        self._encode: list[Encode] = []
        self._features: list[Features] = []
        self._held: dict[Request, dict[int, StoredItem]] = {}
        self._used_up: list[StoredItem] = []
        self.num_encoded = 0
        """Tokens of images, since the start."""

    def begin(self) -> None:
        """Begin a step: what the last one needed for the last time may go."""
        self._left = self._step_tokens
        if self._used_up:
            self.store.let_go(self._used_up)
            self._used_up.clear()

    def take(self) -> tuple[list[Encode], list[Features]]:
        """Return what the step's plan must say, and forget it."""
        taken = self._encode, self._features
        if self._encode or self._features:
            self._encode, self._features = [], []
        return taken

    def reach(self, request: Request, end: int) -> int:
        """Hold the images that a chunk up to ``end`` needs; returns where it can end."""
        end = self.whole(request, end)
        held = self._held.setdefault(request, {})
        for number, item in enumerate(request.media):
            if item.begin >= end:
                break
            if item.end <= request.computed or number in held:
                continue
            stored = self._find(item)
            if stored is None:
                end = max(request.computed, item.begin)
                break
            stored.users += 1
            held[number] = stored
            self._features.append(Features(request.slot, number, stored.pages))
        for number in [number for number in held if request.media[number].end <= end]:
            self._used_up.append(held.pop(number))
        return end

    def whole(self, request: Request, end: int) -> int:
        """Return where a chunk up to ``end`` can end so that it has no part of an image.

        That is ``end`` itself in models that see an image token by token.
        """
        if self._is_whole:
            for item in request.media:
                if item.begin < end < item.end:
                    return max(request.computed, item.begin)
        return end

    def is_split(self, request: Request, num_tokens: int) -> bool:
        """Whether ``num_tokens`` are too few for the image that ``request`` must go on with."""
        begin = request.computed
        return self._is_whole and any(
            item.begin <= begin < item.end and begin + num_tokens < item.end
            for item in request.media
        )

    def room_for(self, request: Request, num_tokens: int) -> int:
        """Return ``num_tokens``: what an image needs is asked chunk by chunk."""
        return num_tokens

    def spend(self, request: Request, num_tokens: int) -> None:
        """Nothing is held before the first chunk."""

    def refund(self, request: Request) -> None:
        """Release the images of ``request``; what it failed with is not used again."""
        held = self._held.pop(request, None)
        if held:
            self._used_up += held.values()
        if request.is_failed:
            for item in request.media:
                stored = self.store.find(item.digest)
                if stored is not None:
                    self.store.drop(stored)

    def forget(self) -> None:
        """After a step that failed: what is in the store is unknown."""
        self.take()
        self.store.clear()

    def _find(self, item: MediaItem) -> StoredItem | None:
        """Return where the features of ``item`` lie, encoded in this step if need be."""
        stored = self.store.find(item.digest)
        if stored is not None:
            return stored
        if item.count > self._left and self._left < self._step_tokens:
            return None
        stored = self.store.make(item.digest, item.count)
        if stored is not None:
            self._left = max(0, self._left - item.count)
            self.num_encoded += item.count
            self._encode.append(
                Encode(stored.pages, item.grid, item.scale, item.shift, item.pixels, item.view)
            )
        return stored


def contents_of(media: Sequence[MediaItem], page_tokens: int) -> Mapping[int, bytes]:
    """Return the digests of the images that stand in each page of a prompt, in order."""
    contents: dict[int, bytes] = {}
    for item in media:
        for page in range(item.begin // page_tokens, (item.end - 1) // page_tokens + 1):
            contents[page] = contents.get(page, b"") + item.digest
    return contents
