"""At what size a step runs: padded into a bucket that can be captured, or as it is."""

from __future__ import annotations

from dataclasses import replace

from headstock.plugins.device import Device
from headstock.runner.batch import StepShape, captured_shape, kv_bucket
from headstock.runner.options import PaddedSizes
from headstock.runner.rows import RowSet
from headstock.wire.steps import RunnerLimits


class StepShapes:
    """Chooses the size of each step.

    Args:
        device: Its policy names the sizes that are captured.
        limits: Of the runner.
        sizes: Of the buffers.
        captures: Whether steps become graphs where the device's policy says so.
    """

    def __init__(
        self, device: Device, *, limits: RunnerLimits, sizes: PaddedSizes, captures: bool
    ) -> None:
        self._policy = device.graph_policy
        self._compiles_sizes = device.facts.compiles_sizes
        self._limits = limits
        self._sizes = sizes
        self._captures = captures
        self._sized: tuple[RowSet, StepShape] | None = None

    def of(self, rows: RowSet, max_kv: int) -> StepShape:
        """Return the size that a step of ``rows``, up to ``max_kv`` tokens long, runs at.

        The last step's rows have its size until they outgrow its bucket.
        """
        if self._sized is not None:
            last, shape = self._sized
            if last is rows and max_kv <= shape.max_kv:
                return shape
        shape = self._choose(rows, max_kv)
        self._sized = (rows, shape) if shape.is_captured else None
        return shape

    def _choose(self, rows: RowSet, max_kv: int) -> StepShape:
        num_tokens, num_rows = len(rows.host_ids), len(rows.queries)
        has_tree = bool(rows.tree.row_begin)
        is_eager = bool(rows.scored or rows.pooled or rows.has_media)
        if self._captures and (not is_eager or (self._compiles_sizes and not rows.has_media)):
            shape = captured_shape(
                self._policy,
                self._sizes,
                num_tokens,
                num_rows,
                kv_bucket(max_kv, self._limits.max_length),
                max_draws=rows.max_draws,
                is_uniform=rows.is_uniform,
                has_tree=has_tree,
                has_adapters=rows.has_adapters,
            )
            if shape is not None and self._has_room(shape):
                return replace(shape, is_captured=not is_eager)
        return StepShape(
            num_tokens,
            num_rows,
            max(rows.queries),
            max_kv,
            rows.max_draws,
            is_uniform=rows.is_uniform,
            is_captured=False,
            has_tree=has_tree,
            has_media=rows.has_media,
            has_adapters=rows.has_adapters,
        )

    def to_warm(self) -> list[StepShape]:
        """Return the sizes that the device's policy captures before serving, largest first."""
        if not self._captures:
            return []
        sizes, max_length = self._sizes, self._limits.max_length
        buckets = sorted({kv_bucket(4**n, max_length) for n in range(max_length.bit_length())})
        most_draws = self._limits.max_drafts + 1
        found: list[StepShape] = []
        for tokens, rows, is_uniform in sorted(
            self._policy.warm_up(sizes.max_tokens, sizes.max_rows), reverse=True
        ):
            for query in sorted({1, most_draws}, reverse=True):
                num_tokens = rows * query if is_uniform else tokens
                if num_tokens > sizes.max_tokens or rows > sizes.max_rows:
                    continue
                shapes = [
                    StepShape(
                        num_tokens,
                        rows,
                        query if is_uniform else tokens,
                        max_kv,
                        query,
                        is_uniform=is_uniform,
                        is_captured=True,
                        has_tree=has_tree,
                        has_adapters=has_adapters,
                    )
                    for has_adapters in (True, False)[not self._limits.num_adapters :]
                    for max_kv in buckets
                    for has_tree in _trees_of(rows, is_uniform=is_uniform)
                ]
                found += filter(self._has_room, shapes)
        return found

    def forget(self) -> None:
        """Choose anew for the next step, whatever its rows."""
        self._sized = None

    def _has_room(self, shape: StepShape) -> bool:
        """Whether the buffers of draws hold those of ``shape``, its padding rows' too."""
        return shape.max_draws <= 1 or shape.num_rows <= self._limits.max_draft_rows


def _trees_of(num_rows: int, *, is_uniform: bool) -> tuple[bool, ...]:
    """Return whether captured steps of so many rows have a tree: always, never, or either."""
    if not is_uniform:
        return (True,)
    return (True, False) if num_rows > 1 else (False,)
