"""What a runner is told when it is built, and the padded sizes that follow."""

from __future__ import annotations

from dataclasses import dataclass

from headstock.plugins.device import GraphPolicy


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
        overlap: Whether a step is launched before the one before has been read; None: as the
            device likes it.
        graphs: Whether steps are captured where the device's policy says so.
    """

    num_slots: int
    max_step_tokens: int
    max_length: int
    vocab_size: int
    page_size: int
    memory_fraction: float = 0.9
    cache_tokens: int | None = None
    overlap: bool | None = None
    graphs: bool = True

    @property
    def max_pages(self) -> int:
        """Pages that the longest request needs."""
        return -(-self.max_length // self.page_size)


@dataclass(frozen=True, slots=True)
class PaddedSizes:
    """Most tokens and rows of a step with its padding: how large step buffers must be."""

    max_tokens: int
    max_rows: int


def padded_sizes(policy: GraphPolicy, options: RunnerOptions) -> PaddedSizes:
    """Return the sizes that attention providers and step buffers are built for."""
    most_tokens, most_rows = max(options.max_step_tokens, options.num_slots), options.num_slots
    tokens, rows = most_tokens, most_rows
    wanted = [(most_rows, most_rows, True)]
    for bits in range(most_tokens.bit_length()):  # one row more: a ragged step has a padding row
        num_tokens = 1 << bits
        wanted.append((num_tokens, min(num_tokens, most_rows + 1), False))
    for num_tokens, num_rows, is_uniform in wanted if options.graphs else ():
        bucket = policy.bucket(num_tokens, num_rows, is_uniform)
        if bucket is not None:
            tokens, rows = max(tokens, bucket[0]), max(rows, bucket[1])
    return PaddedSizes(tokens, rows)
