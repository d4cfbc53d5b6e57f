"""MiMo-V2-Flash: keys wider than values, windows with sinks in most layers, many small experts.

Values are cached as wide as keys, zeros behind them; what attention makes of those is left out.

Shapes: T tokens in the step, D hidden size, C features of all heads. Source: Xiaomi 2026,
"MiMo-V2-Flash Technical Report"; names as on the hub, or as transformers calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.arranged import ArrangedLinear, Rows
from headstock.graph.attention import Attention
from headstock.graph.build import Model
from headstock.graph.config import require
from headstock.graph.context import Context
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.ops.attention import StepBatch
from headstock.ops.features import scale_features
from headstock_models.llama import (
    FULL,
    SLIDING,
    WINDOWED,
    LlamaConfig,
    LlamaForCausalLM,
    Rotaries,
    rotaries_of_kinds,
)
from headstock_models.sigmoid_experts import sigmoid_moe

DENSE, SPARSE = "dense", "sparse"
ROTARY_SHARE = 0.334
OF_FULL_LAYERS = ("num_attention_heads", "head_dim", "v_head_dim")
"""Sizes that layers with a window have too: ``swa_`` stands before them there."""


class MimoV2Config(LlamaConfig, frozen=True, kw_only=True):
    num_key_value_heads: int = 4
    head_dim: int = 192
    v_head_dim: int = 128
    rms_norm_eps: float = 1e-5
    sliding_window: int = 129
    attention_value_scale: float | None = 0.707
    mlp_layer_types: tuple[str, ...] = ()
    moe_intermediate_size: int = 2048
    n_routed_experts: int
    n_shared_experts: int = 0
    num_experts_per_tok: int = 8
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0

    def usual_kind(self, number: int) -> str:
        """Return what layer ``number`` is: the first sees all, and every sixth."""
        return FULL if number == 0 or (number + 1) % 6 == 0 else SLIDING

    def kv_heads(self, number: int) -> int:
        """Return the key/value heads of layer ``number``."""
        return self.num_key_value_heads * (2 if self.kind(number) == SLIDING else 1)

    def is_dense(self, number: int) -> bool:
        """Whether layer ``number`` has no experts: without a list, the first has none."""
        return self.mlp_layer_types[number] == DENSE if self.mlp_layer_types else number == 0

    def make_mlp(self, ctx: Context, number: int) -> Module:
        return super().make_mlp(ctx, number) if self.is_dense(number) else sigmoid_moe(ctx, self)

    def make_attention(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return MimoV2Attention(ctx, self, rotaries, number)


class MimoV2Attention(Module):
    """W_o (s · attend(rotate(W_q x), rotate(W_k x), W_v x)), with sinks where there is a window."""

    def __init__(self, ctx: Context, c: MimoV2Config, rotaries: Rotaries, number: int) -> None:
        heads, kv_heads, d = c.num_attention_heads, c.kv_heads(number), c.head_dim
        self._head_dim, self._value_size = d, c.v_head_dim
        rows = partial(Rows, first=0, num_heads=kv_heads, is_shared=True)
        values = rows(size=c.v_head_dim, stride=c.v_head_dim, padding=d - c.v_head_dim)
        leaves = {
            "q_proj": [Rows(first=0, size=d, stride=d, num_heads=heads)],
            "k_proj": [rows(size=d, stride=d)],
            "v_proj": [values],
        }
        self.qkv = ArrangedLinear(ctx, c.hidden_size, leaves, has_bias=c.attention_bias)
        window = c.window(number)
        self.attend = Attention(
            ctx,
            heads,
            kv_heads,
            d,
            rotary=rotaries[c.kind(number)],
            window=window,
            has_sinks=window is not None,
        )
        scale = c.attention_value_scale
        scale_values = ctx.ops.resolve(scale_features, ctx.spec())
        self._scale = partial(scale_values, factor=1.0 if scale is None else scale)
        self.out = Linear(ctx, heads * c.v_head_dim, {"o_proj": c.hidden_size}, split="in")

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        y_TC = keep(self.attend(self.qkv(x_TD), batch), batch)
        # Every head's values, a row each; attention is linear in them, so that they are scaled now.
        values = y_TC.view(-1, self._head_dim)[:, : self._value_size]
        return self.out(self._scale(values).view(y_TC.shape[0], -1))


class MiMoV2FlashForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = MimoV2Config
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        **WINDOWED,
        "partial_rotary_factor": None,
        "mlp_layer_types": (DENSE, SPARSE),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
        "n_shared_experts": (0,),
        "attention_projection_layout": ("split",),
        "add_full_attention_sink_bias": (False,),
        "add_swa_attention_sink_bias": (True,),
    }
    skip: Mapping[str, str] = {**Model.skip, r"^model\.mtp\.": "layers that draft tokens to come"}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        _check_sizes(config)
        super().__init__(ctx, _with_our_keys(config))

    def rotaries(self, ctx: Context, c: LlamaConfig, config: Mapping[str, Any]) -> Rotaries:
        """Return the tables of angles by kind of layer: each kind has a base of its own."""
        return rotaries_of_kinds(ctx, c, config, (FULL, SLIDING), share=ROTARY_SHARE)

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by the names of transformers."""
        hub = ".self_attn.attention_sink_bias"
        return {name.replace(hub, ".self_attn.sinks"): tensor for name, tensor in index.items()}


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse layers with a window whose sizes are not those of the others, but for more heads.

    Raises:
        UnsupportedError: Naming the size.
    """
    for key in OF_FULL_LAYERS:
        require(config, **{f"swa_{key}": (config.get(key),)})
    require(config, swa_num_key_value_heads=(2 * int(config.get("num_key_value_heads") or 0),))
    scaling = config.get("rope_scaling") or {}
    require(
        {"rope_scaling": scaling.get("rope_type", scaling.get("type"))}, rope_scaling=("default",)
    )


def _with_our_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in today's keys: the hub's are older."""
    given: dict[str, Any] = {
        "rms_norm_eps": config.get("layernorm_epsilon"),
        "n_routed_experts": config.get("num_local_experts"),
    }
    if config.get("hybrid_layer_pattern"):
        given["layer_types"] = [SLIDING if n else FULL for n in config["hybrid_layer_pattern"]]
    if config.get("moe_layer_freq"):
        given["mlp_layer_types"] = [SPARSE if n else DENSE for n in config["moe_layer_freq"]]
    share = config.get("partial_rotary_factor") or ROTARY_SHARE
    thetas = {
        FULL: config.get("rope_theta") or 5_000_000.0,
        SLIDING: config.get("swa_rope_theta") or 10_000.0,
    }
    given["rope_parameters"] = {
        kind: {"rope_theta": theta, "partial_rotary_factor": share}
        for kind, theta in thetas.items()
    }
    given |= {key: value for key, value in config.items() if value is not None or key not in given}
    if config.get("sliding_window_size") is not None:  # which leaves the token itself out
        given["sliding_window"] = config["sliding_window_size"] + 1
    return given
