"""Images in steps: where their tokens are, the store of their features, and the encoder's runs.

Shapes: T tokens as a step is padded, A axes of a position, M rows of the store, F features of a
row, N patches, P bytes of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from headstock.graph.vision import MediaModel
from headstock.ops.attention import StepMedia, StepSpan
from headstock.ops.base import Resolver, Spec
from headstock.ops.media import NO_FEATURES, store_features
from headstock.plugins.device import Device
from headstock.runner.options import PaddedSizes
from headstock.runner.upload import HostArrays
from headstock.wire.media import Encode, Features, MediaLimits, MediaSpan, View
from headstock.wire.steps import FROM_HOST, Admit, StepPlan

PAGE_TOKENS = 16
"""Tokens that a page of the store holds."""


def media_limits(model: MediaModel, max_tokens: int) -> MediaLimits:
    """Return what a runner with room for the features of ``max_tokens`` tokens can take."""
    return MediaLimits(
        num_pages=1 + -(-max_tokens // PAGE_TOKENS),
        page_tokens=PAGE_TOKENS,
        num_axes=model.num_axes,
        patches_per_token=model.patches_per_token,
        patch_bytes=model.patch_bytes,
        max_side=model.max_side,
        is_whole=model.sees_spans,
        row_tokens=model.row_tokens,
        tile_side=model.tile_side,
        pooled_frames=model.pooled_frames,
    )


@dataclass(slots=True)
class SlotMedia:
    """What the host remembers of a slot's images.

    Attributes:
        spans: Where they stand in the prompt.
        shifts_AT: How far positions are from places, up to the last image's end. int32.
        shift: How far they are from there on.
        rows: Row of the store of each token, of images whose features have been placed. int64.
    """

    spans: list[MediaSpan]
    shifts_AT: np.ndarray
    shift: int
    rows: dict[int, np.ndarray] = field(default_factory=dict[int, np.ndarray])


class MediaRows:
    """The host's side of images, and the tensors that steps read of them.

    Args:
        device: Where.
        arrays: Carries what a step needs of them.
        model: Encodes them.
        resolver: Chooses the op that fills the store.
        limits: Sizes.
        sizes: Most tokens of a step.
        dtype: Of the features.
    """

    def __init__(
        self,
        device: Device,
        arrays: HostArrays,
        model: MediaModel,
        resolver: Resolver,
        *,
        limits: MediaLimits,
        sizes: PaddedSizes,
        dtype: torch.dtype,
    ) -> None:
        self._arrays = arrays
        self._model = model
        self._limits = limits
        shape = (limits.num_pages * limits.page_tokens, model.feature_size)
        self._features_MF = device.empty(shape, dtype).zero_()
        self._shifts_AT = device.empty((limits.num_axes, sizes.max_tokens), torch.int32).zero_()
        self._rows_T = device.empty((sizes.max_tokens,), torch.int32).fill_(NO_FEATURES)
        spec = Spec(dtype=str(dtype).removeprefix("torch."))
        self._store: Callable[[Tensor, Tensor, Tensor], Tensor]
        self._store = resolver.resolve(store_features, spec)
        self._slots: dict[int, SlotMedia] = {}
        self._step_AT = np.zeros((limits.num_axes, 0), np.int32)
        self._step_rows_T: np.ndarray | None = None
        self._spans: list[StepSpan] = []

    def enter(self, plan: StepPlan) -> None:
        """Note whose images leave, which come, and where features lie."""
        for slot in plan.leave:
            self._slots.pop(slot, None)
        for admit in plan.admit:
            self._admit(admit)
        for features in plan.features:
            self._place(features)

    def _admit(self, admit: Admit) -> None:
        self._slots.pop(admit.slot, None)
        if admit.media:
            begins = [span.begin for span in admit.media]
            grids = [span.grid for span in admit.media]
            moments = [(span.time, span.follows) for span in admit.media]
            found = self._model.shifts(begins, grids, moments)
            self._slots[admit.slot] = SlotMedia(admit.media, *found)

    def _place(self, features: Features) -> None:
        size = self._limits.page_tokens
        media = self._slots[features.slot]
        span, limits = media.spans[features.item], self._limits
        rows = np.array(features.pages)[:, None] * size + np.arange(size)
        found = rows.reshape(-1)
        if limits.row_tokens:
            found = found[: limits.features_of(span.grid)]
            shape = ((0, 0), (0, limits.row_tokens))
            lines = found.reshape(limits.rows_of(span.grid), -1)
            found = np.pad(lines, shape, constant_values=NO_FEATURES).reshape(-1)
        media.rows[features.item] = found[: span.count]

    def read(self, plan: StepPlan) -> bool:
        """Read the rows of ``plan``; returns whether tokens of them have features."""
        rows = plan.rows
        total = sum(rows.query_max)
        self._step_AT = np.zeros((self._limits.num_axes, total), np.int32)
        self._step_rows_T = None
        self._spans = []
        if not self._slots:
            return False
        at = 0
        columns = zip(rows.slots, rows.query_max, rows.kv_max, rows.source, strict=True)
        for row, (slot, query, kv_max, source) in enumerate(columns):
            media = self._slots.get(slot)
            if media is not None:
                shifts = self._step_AT[:, at : at + query]
                shifts[:] = media.shift
                if source == FROM_HOST:  # the host knows where it begins
                    self._read_row(media, row, kv_max - query, at, shifts)
            at += query
        return self._step_rows_T is not None

    def _read_row(
        self, media: SlotMedia, row: int, begin: int, at: int, shifts: np.ndarray
    ) -> None:
        """Read a row whose tokens begin at place ``begin`` of its prompt, ``at`` of the step."""
        query = shifts.shape[1]
        before = media.shifts_AT[:, begin : begin + query]
        shifts[:, : before.shape[1]] = before
        for number, span in enumerate(media.spans):
            first, last = max(span.begin, begin), min(span.begin + span.count, begin + query)
            if first >= last:
                continue
            if self._step_rows_T is None:
                self._step_rows_T = np.full(self._step_AT.shape[1], NO_FEATURES, np.int32)
            found = media.rows[number][first - span.begin : last - span.begin]
            self._step_rows_T[at + first - begin : at + last - begin] = found
            if self._limits.is_whole:
                self._spans.append(StepSpan(at + first - begin, last - first, row, last))

    def send(self, num_tokens: int) -> None:
        """Queue the copy of what was read, padded to ``num_tokens``."""
        num_axes, count = self._step_AT.shape
        if num_axes:
            shifts_AT = np.zeros((num_axes, num_tokens), np.int32)
            shifts_AT[:, :count] = self._step_AT
            self._shifts_AT[:, :num_tokens].copy_(self._arrays.send(shifts_AT))
        if self._step_rows_T is not None:
            rows_T = np.full(num_tokens, NO_FEATURES, np.int32)
            rows_T[:count] = self._step_rows_T
            self._rows_T[:num_tokens].copy_(self._arrays.send(rows_T))

    def views(self, num_tokens: int, *, has_media: bool) -> tuple[Tensor | None, StepMedia | None]:
        """Return what a step of so many tokens reads: shifts, and features, where it has any."""
        shifts_AT = self._shifts_AT[:, :num_tokens] if self._limits.num_axes else None
        if not has_media:
            return shifts_AT, None
        return shifts_AT, StepMedia(self._rows_T[:num_tokens], self._features_MF, self._spans)

    def encode(self, items: Sequence[Encode]) -> None:
        """Queue the encoder's run on ``items``, and have the store keep their features."""
        for (scale, shift), group in groupby(items, lambda item: (item.scale, item.shift)):
            self._encode(list(group), scale, shift)

    @property
    def num_bytes(self) -> int:
        """Bytes of the store."""
        return self._features_MF.nbytes

    def rehearse(self) -> None:
        """Encode the largest image there may be, to see what that takes."""
        limits = self._limits
        tokens = limits.max_tokens
        unit = round(limits.patches_per_token**0.5)
        side = max(1, min(int(tokens**0.5), limits.max_side // unit))
        grid, view = (limits.pooled_frames, side * unit, side * unit), None
        if limits.tile_side:
            grid = (1, limits.max_side, limits.max_side)
            shown = max(1, min(int(tokens**0.5) - 1, limits.max_side))
            view = View(limits.max_side, limits.max_side, shown, shown, shown)
        used = limits.features_of(grid, view)
        pages = list(range(1, 1 + -(-used // limits.page_tokens)))
        pixels = bytes(grid[0] * grid[1] * grid[2] * limits.patch_bytes)
        self.encode([Encode(pages, grid, [1.0] * 3, [0.0] * 3, pixels, view)])

    def _encode(self, items: list[Encode], scale: list[float], shift: list[float]) -> None:
        size = self._limits.page_tokens
        pixels = b"".join(item.pixels for item in items)
        pixels_NP = np.frombuffer(pixels, np.uint8).reshape(-1, self._limits.patch_bytes)
        rows: list[np.ndarray] = []
        for item in items:
            count = self._limits.features_of(item.grid, item.view)
            pages = np.array(item.pages)[:, None] * size + np.arange(size)
            rows.append(pages.reshape(-1)[:count])
        sent = self._arrays.send(pixels_NP.copy())
        grids = [item.grid for item in items]
        scale_C = self._arrays.send(np.array(scale, np.float32))
        shift_C = self._arrays.send(np.array(shift, np.float32))
        views = [item.view for item in items]
        features_NF = self._model.encode(sent, grids, scale_C, shift_C, self._arrays.send, views)
        rows_N = self._arrays.send(np.concatenate(rows).astype(np.int64))
        self._features_MF = self._store(features_NF, rows_N, self._features_MF)
