"""What requests must yield on the null runner, whatever happens around them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Sequence

from headstock.wire.steps import Admit

MASK = (1 << 64) - 1
ROOT = 0x9E3779B97F4A7C15


def mix(chain: int, token: int) -> int:
    """Return the hash of a context with one more token."""
    chain = ((chain ^ (token + 1)) * 0xBF58476D1CE4E5B9) & MASK
    return chain ^ (chain >> 29)


def draw(
    chain: int, admit: Admit, index: int, vocab_size: int, mask: Container[int] | None = None
) -> int:
    """Return output ``index`` after a context; stop ids only from ``min_outputs`` on."""
    token = mix(mix(chain, admit.seed & MASK), index) % vocab_size
    for _ in range(vocab_size):
        is_early = index < admit.min_outputs and token in admit.stop_ids
        if not is_early and (mask is None or token in mask):
            return token
        token = (token + 1) % vocab_size
    raise AssertionError("nothing may be drawn")


def root(adapter: str) -> int:
    """Return the hash of the empty context: with an adapter everything is computed otherwise."""
    chain = ROOT
    for byte in adapter.encode():
        chain = mix(chain, byte)
    return chain


def expected_vector(prompt: Sequence[int], last_chunk: int, adapter: str = "") -> bytes:
    """Return what pooling yields: of the whole context, and of the last chunk's length."""
    chain = root(adapter)
    for token in prompt:
        chain = mix(chain, token)
    return struct.pack("<2f", chain & 0xFFFF, last_chunk)


def expected_outputs(
    prompt: Sequence[int],
    *,
    max_outputs: int,
    vocab_size: int,
    stop_ids: Sequence[int] = (),
    seed: int = 0,
    min_outputs: int = 0,
    drawable: Callable[[int], set[int]] | None = None,
    adapter: str = "",
) -> list[int]:
    """Return what a request must yield, whatever happens around it: the naive model."""
    facts = Admit(0, 0, 0, max_outputs, min_outputs, list(stop_ids), seed=seed)
    chain = root(adapter)
    for token in prompt:
        chain = mix(chain, token)
    outputs: list[int] = []
    while len(outputs) < max_outputs:
        mask = None if drawable is None else drawable(len(outputs))
        if mask is not None and not mask:
            break
        token = draw(chain, facts, len(outputs), vocab_size, mask)
        outputs.append(token)
        chain = mix(chain, token)
        if token in stop_ids:
            break
    return outputs


def allowed_ids(words: bytes) -> set[int]:
    """Return the ids whose bits are set."""
    return {i for i in range(8 * len(words)) if words[i >> 3] >> (i & 7) & 1}
