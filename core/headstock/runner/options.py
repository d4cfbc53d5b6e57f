"""The options that a runner is built with, and the padded sizes that follow."""

from __future__ import annotations

from dataclasses import dataclass

from headstock.plugins.device import GraphPolicy
from headstock.wire.steps import DRAFT_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """Sizes and switches of a runner.

    Attributes:
        num_slots: Requests it holds at once.
        max_step_tokens: Tokens a step may compute.
        max_length: Longest request, prompt and output. Tokens.
        vocab_size: Ids the model has.
        page_size: Tokens a page holds.
        memory_fraction: Share of the device's free memory for weights, pages and workspace.
        cache_tokens: Size the cache by tokens instead.
        max_drafts: Tokens that may be drafted a row and step.
        num_adapters: LoRA adapters that it holds at once.
        media_tokens: Tokens of images whose features it keeps at once; no image has more.
        overlap: Whether a step is launched before the one before has been read; None: as the
            device likes it.
        graphs: Whether steps are captured where the device's policy says so.
        yields: What rows may yield: ``draw``, ``pool``.
        is_causal: Whether a prompt may be computed in parts, of which some may be cached.
    """

    num_slots: int
    max_step_tokens: int
    max_length: int
    vocab_size: int
    page_size: int
    memory_fraction: float = 0.9
    cache_tokens: int | None = None
    max_drafts: int = 0
    num_adapters: int = 0
    media_tokens: int = 8192
    overlap: bool | None = None
    graphs: bool = True
    yields: tuple[str, ...] = ("draw",)
    is_causal: bool = True

    @property
    def draws(self) -> bool:
        """Whether any row may yield tokens: others need no room for logits."""
        return "draw" in self.yields

    @property
    def max_pages(self) -> int:
        """Pages that the longest request needs."""
        return -(-self.max_length // self.page_size)


@dataclass(frozen=True, slots=True)
class PaddedSizes:
    """Most tokens and rows of a step with its padding: how large step buffers must be."""

    max_tokens: int
    max_rows: int


def ragged_bucket(policy: GraphPolicy, num_tokens: int, num_rows: int) -> tuple[int, int] | None:
    """Return a bucket that has a padding row, and a token for each padding row, or None.

    So a step may need a larger one than its tokens alone would.
    """
    bucket = policy.bucket(num_tokens, num_rows, False)
    while bucket is not None:
        padding = max(bucket[1] - num_rows, 1)
        larger = policy.bucket(num_tokens + padding, num_rows + 1, False)
        if larger == bucket:
            break
        bucket = larger
    return bucket


def padded_sizes(policy: GraphPolicy, options: RunnerOptions) -> PaddedSizes:
    """Return the sizes that attention providers and step buffers are built for."""
    query, most_rows = options.max_drafts + 1, options.num_slots
    most_tokens = max(options.max_step_tokens, min(most_rows, DRAFT_ROWS) * query, most_rows)
    tokens, rows = most_tokens, most_rows
    wanted = [(most_rows, most_rows, True), (most_tokens, 1, False)]
    for bits in range(most_tokens.bit_length()):
        num_tokens = 1 << bits
        wanted.append((num_tokens, min(num_tokens, most_rows), False))
    for num_tokens, num_rows, is_uniform in wanted if options.graphs else ():
        if is_uniform:
            bucket = policy.bucket(num_tokens, num_rows, is_uniform)
        else:
            bucket = ragged_bucket(policy, num_tokens, num_rows)
        if bucket is not None:
            padded = max(bucket[1], min(bucket[1], DRAFT_ROWS) * query) if is_uniform else bucket[0]
            tokens, rows = max(tokens, padded), max(rows, bucket[1])
    return PaddedSizes(tokens, rows)
