"""Attention as transformers' classes call it: queries, keys and values apart, already rotated.

Shapes: T tokens, H query heads, K key/value heads, D head size, E size of a value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from headstock.errors import UnsupportedError
from headstock.graph.attention import FULL
from headstock.graph.context import Context, Retention
from headstock.graph.split import split_evenly, split_or_replicate
from headstock.ops.attention import AttentionProvider, StepBatch
from headstock_models.fallback.classes import REMEDY

NAME = "headstock"
CALL = "headstock_call"
"""Attribute of an attention module: what its calls of the interface go to."""
TRACED = 5
"""Tokens of the step that shows how a class calls attention."""
IGNORED = frozenset({"position_ids", "cache_position"})
"""Tensors that may come beside queries, keys and values, and that attention does without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """How a module of transformers calls attention, over all ranks.

    Attributes:
        path: Of the module.
        num_heads: H.
        num_kv_heads: K.
        head_dim: D.
        value_size: E, up to D.
        scale: Multiplies q·k.
        window: Tokens that a query sees, itself included; None: all before it.
        soft_cap: Scores become cap · tanh(score / cap); None: as they are.
    """

    path: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_size: int
    scale: float
    window: int | None
    soft_cap: float | None


@dataclass(slots=True)
class Step:
    """The step that is being computed: modules of transformers are not passed it.

    Attributes:
        batch: As the first group sees it.
    """

    batch: StepBatch | None = None


class PagedAttention:
    """One attention module's pages; entered into ``ctx.attention_layers``."""

    kv: Tensor

    def __init__(self, ctx: Context, call: AttentionCall, step: Step, *, is_divided: bool) -> None:
        self._step, self._call = step, call
        size, num_heads, num_kv_heads = call.head_dim, call.num_heads, call.num_kv_heads
        if is_divided:
            num_heads = split_evenly(call.path, num_heads * size, ctx.tp, unit=size).size // size
            kv = split_or_replicate(call.path, num_kv_heads * size, ctx.tp, unit=size)
            num_kv_heads = kv.size // size
        window = call.window
        if window is not None and window >= ctx.limits.max_length:
            window = None  # every token is inside of it
        features = {"sliding_window": window, "soft_cap": call.soft_cap}
        self.provider: AttentionProvider = ctx.attention_provider(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=size,
            scale=call.scale,
            features=frozenset(name for name, value in features.items() if value is not None),
            window=window,
            soft_cap=call.soft_cap,
        )
        self.group = ctx.group(FULL if window is None else Retention("window", window))
        ctx.attention_layers.append(self)

    def __call__(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        """Store keys and values, and attend.

        Args:
            module: Whose call it is.
            q: [1, H, T, D]
            k: [1, K, T, D]
            v: [1, K, T, E]
            mask: None: which tokens see which follows from the step.
            **options: What the trace has seen already.

        Returns:
            [1, T, H, E], and no weights.
        """
        assert self._step.batch is not None, f"{self._call.path} is called outside of a step"
        batch = self._step.batch.groups[self.group]
        missing = self._call.head_dim - self._call.value_size
        v = functional.pad(v, (0, missing)) if missing else v
        q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))
        self.provider.write(k_TKD, v_TKD, self.kv, batch)
        out_THD = self.provider.run(q_THD, self.kv, batch)
        return out_THD[None, ..., : self._call.value_size], None


def register() -> None:
    """Register our attention, so that transformers' classes find it by its name."""
    AttentionInterface.register(NAME, _attend)


def _attend(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Any = None, **options: Any
) -> tuple[Tensor, None]:
    return getattr(module, CALL)(module, q, k, v, attention_mask, **options)


def find_calls(model: Any, run: Callable[[Tensor, Tensor], Any]) -> list[AttentionCall]:
    """Run a step on a model whose tensors have shapes and no values; return its calls, in order.

    Args:
        model: On PyTorch's meta device.
        run: (ids, positions), each [1, T], to anything: computes the hidden states.

    Raises:
        UnsupportedError: It calls attention in a way that pages cannot serve.
    """
    calls: list[AttentionCall] = []
    for path, module in model.named_modules():
        setattr(module, CALL, partial(_take_down, path, calls))
    ids = torch.zeros((1, TRACED), dtype=torch.int64, device="meta")
    try:
        run(ids, torch.arange(TRACED, device="meta")[None])
    except UnsupportedError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UnsupportedError(
            f"transformers' {type(model).__name__} does not run on shapes alone ({reason}).",
            remedy=REMEDY,
        ) from error
    return calls


def _take_down(
    path: str,
    calls: list[AttentionCall],
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Any,
    **options: Any,
) -> tuple[Tensor, None]:
    tensors = [n for n, value in options.items() if isinstance(value, Tensor) and n not in IGNORED]
    if mask is not None or tensors or options.get("is_causal") is False:
        what = "a mask" if mask is not None else " and ".join(tensors) or "is_causal = False"
        raise UnsupportedError(
            f"transformers' class calls the attention of {path} with {what}, which pages"
            " cannot serve.",
            remedy=REMEDY,
        )
    head_dim, value_size = q.shape[-1], v.shape[-1]
    if k.shape[-1] != head_dim or value_size > head_dim or k.shape[2] != q.shape[2]:
        raise UnsupportedError(
            f"transformers' class calls the attention of {path} with queries {list(q.shape)}, keys"
            f" {list(k.shape)} and values {list(v.shape)}.",
            remedy=REMEDY,
        )
    scale = options.get("scaling")
    calls.append(
        AttentionCall(
            path=path,
            num_heads=q.shape[1],
            num_kv_heads=k.shape[1],
            head_dim=head_dim,
            value_size=value_size,
            scale=head_dim**-0.5 if scale is None else float(scale),
            window=options.get("sliding_window"),
            soft_cap=options.get("softcap"),
        )
    )
    return q.new_empty((1, q.shape[2], q.shape[1], value_size)), None
