"""Attention of tokens that see each other, such as those of an image, in a step that is causal.

Shapes: T tokens of the step, S tokens of a span, L tokens that some of them see, H query heads,
K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.attention import AttentionProvider, StepBatch, StepSpan
from headstock.ops.base import op


@op()
def span_attention(
    out_THD: Tensor,
    q_THD: Tensor,
    kv: Tensor,
    batch: StepBatch,
    *,
    spans: Sequence[StepSpan],
    provider: AttentionProvider,
    page_size: int,
    scale: float,
    window: int | None,
) -> Tensor:
    """Attend again for tokens of spans: each sees all before its span and all of it.

    Comes behind the provider, for which tokens see those before them alone, and reads the pages
    that it has written. Resolved with the tag of the provider's ``page_format`` and the sizes
    ``num_heads``, ``num_kv_heads`` and ``head_dim``. Steps with spans are not captured.

    Args:
        out_THD: What the provider returned. [T, H, D]
        q_THD: Queries. [T, H, D]
        kv: The layer's pages, which hold the step's own tokens.
        batch: The step, as the layer's group sees it.
        spans: On the host; none has a token of another.
        provider: Whose page format ``kv`` has.
        page_size: Tokens a page holds.
        scale: Multiplies q·k. Dimensionless.
        window: Tokens before it that a query sees, itself included, besides those behind it in the
            span; None: all.

    Returns:
        In the dtype of ``out_THD``. [T, H, D]

    Source:
        Gemma Team 2025, "Gemma 3 Technical Report"; ``create_masks_for_vision_model`` of Hugging
        Face transformers.
    """
    for span in spans:
        begin = span.end - span.count
        first = 0 if window is None else max(0, begin - window + 1)
        tokens_L = torch.arange(first, span.end, device=kv.device)
        pages_L = batch.page_table_RP[span.row].index_select(0, tokens_L // page_size)
        slots_L = pages_L.long() * page_size + tokens_L % page_size
        k_LKD, v_LKD = (x_LKD.to(q_THD.dtype) for x_LKD in provider.read(kv, slots_L))
        mask_SL = None
        if window is not None:
            mask_SL = tokens_L > torch.arange(begin, span.end, device=kv.device)[:, None] - window
        here = slice(span.token, span.token + span.count)
        q_HSD, k_KLD, v_KLD = (x.transpose(0, 1) for x in (q_THD[here], k_LKD, v_LKD))
        seen_HSD = functional.scaled_dot_product_attention(
            q_HSD[None], k_KLD[None], v_KLD[None], attn_mask=mask_SL, scale=scale, enable_gqa=True
        )[0]
        places_S = torch.arange(here.start, here.stop, device=kv.device)
        out_THD = out_THD.index_copy(0, places_S, seen_HSD.transpose(0, 1))
    return out_THD
