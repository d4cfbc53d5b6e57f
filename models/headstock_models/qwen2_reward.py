"""Qwen2.5's reward models: of a whole answer, and of each of its steps.

Both score hidden states through two products with a rectifier between. A step's score is that of
the token that ends it, which the server picks. Shapes: S tokens, P rows, D hidden size. Sources:
Yang et al. 2024, "Qwen2.5-Math"; Zhang et al. 2025, "The Lessons of Developing Process Reward
Models"; names as in the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headstock.checkpoint.sentence import Pooling
from headstock.graph.config import require
from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.graph.pooled import PooledDecoder, head, num_labels
from headstock.ops.attention import StepBatch
from headstock.ops.base import Spec
from headstock.ops.outputs import as_float32, rectify
from headstock_models.qwen2 import Qwen2ForCausalLM


class RewardHead(Module):
    """W_2 max(0, W_0 x + b_0) + b_2."""

    alias = "score"

    def __init__(self, ctx: Context, size: int, labels: int) -> None:
        self._widen = ctx.ops.resolve(as_float32, ctx.spec())
        self._rectify = ctx.ops.resolve(rectify, Spec(dtype="float32"))
        self.first = head(ctx, size, {"0": size}, has_bias=True)
        self.second = head(ctx, size, {"2": labels}, has_bias=True)

    def forward(self, x_SD: Tensor) -> Tensor:
        return self.second(self._rectify(self.first(self._widen(x_SD))))


class Qwen2ForRewardModel(PooledDecoder):
    """The score of a row's last token."""

    labels: ClassVar[int] = 1

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, is_causal=(True,))
        super().__init__(replace(ctx, pooling=Pooling("last")), config, Qwen2ForCausalLM)
        labels = num_labels(config) if "id2label" in config or "num_labels" in config else None
        self.rewards = RewardHead(ctx, int(config["hidden_size"]), labels or self.labels)

    def pool(self, hidden_TD: Tensor, batch: StepBatch, rows_P: Tensor) -> Tensor:
        return self.rewards(self.pooler(hidden_TD, batch, rows_P))


class Qwen2ForProcessRewardModel(Qwen2ForRewardModel):
    """Scores of every token: the logarithms of how likely what it ends is wrong, and right."""

    yields: ClassVar[tuple[str, ...]] = ()
    labels: ClassVar[int] = 2

    @property
    def token_yields(self) -> tuple[str, ...]:
        return ("token_classify",)

    def pool_tokens(self, hidden_SD: Tensor, *, is_score: bool) -> Tensor:
        return self.rewards(hidden_SD)
