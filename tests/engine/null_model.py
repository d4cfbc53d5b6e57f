"""What requests must yield on the null runner, whatever happens around them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from headstock.wire.steps import Admit

MASK = (1 << 64) - 1
ROOT = 0x9E3779B97F4A7C15


def mix(chain: int, token: int) -> int:
    """Return the hash of a context with one more token."""
    chain = ((chain ^ (token + 1)) * 0xBF58476D1CE4E5B9) & MASK
    return chain ^ (chain >> 29)


def draw(chain: int, admit: Admit, index: int, vocab_size: int) -> int:
    """Return output ``index`` after a context; stop ids only from ``min_outputs`` on."""
    token = mix(mix(chain, admit.seed & MASK), index) % vocab_size
    while index < admit.min_outputs and token in admit.stop_ids:
        token = (token + 1) % vocab_size
    return token


def expected_vector(prompt: Sequence[int], last_chunk: int) -> bytes:
    """Return what pooling yields: of the whole context, and of the last chunk's length."""
    chain = ROOT
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
) -> list[int]:
    """Return what a request must yield, whatever happens around it: the naive model."""
    facts = Admit(0, 0, 0, max_outputs, min_outputs, list(stop_ids), seed=seed)
    chain = ROOT
    for token in prompt:
        chain = mix(chain, token)
    outputs: list[int] = []
    while len(outputs) < max_outputs:
        token = draw(chain, facts, len(outputs), vocab_size)
        outputs.append(token)
        chain = mix(chain, token)
        if token in stop_ids:
            break
    return outputs
