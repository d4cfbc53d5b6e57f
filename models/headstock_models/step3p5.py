"""Step 3.5, and the text of Step 3.7: gates by head, more heads under a window, many small experts.

Shapes: T tokens in the step, D hidden size, H query heads, C features of all heads. Source: StepFun
2026, "Step 3.5 Flash"; names as on the hub, which transformers writes too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.attention import Attention
from headstock.graph.build import Model
from headstock.graph.config import require, section
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.routed_moe import RoutedMoE
from headstock.graph.stacked import Stacked, split_stacked
from headstock.ops.activation_kinds import SILU, Activation, bounded_swiglu
from headstock.ops.attention import StepBatch
from headstock.ops.gates import gate_heads
from headstock.ops.routing import Routing
from headstock_models.image_text import NO_IMAGES
from headstock_models.llama import (
    FULL,
    SLIDING,
    WINDOWED,
    LlamaConfig,
    LlamaForCausalLM,
    Rotaries,
    rotaries_of_kinds,
)
from headstock_models.sigmoid_experts import BIAS_LEAF
from headstock_models.stored_rows import renamed

DENSE, SPARSE = "dense", "sparse"
OUR_KEYS = {
    "num_attention_groups": "num_key_value_heads",
    "moe_num_experts": "n_routed_experts",
    "num_local_experts": "n_routed_experts",
    "moe_top_k": "num_experts_per_tok",
    "share_expert_dims": "share_expert_dim",
}
"""What older configurations call a key otherwise."""
BY_LAYER = ("layer_types", "mlp_layer_types", "swiglu_limits", "swiglu_limits_shared")
"""Lists that go on with the layers that draft tokens."""
NAMES = (
    (r"\.moe\.router_bias$", f".mlp.{BIAS_LEAF}"),
    (r"\.moe\.gate\.", ".mlp.gate."),
    (r"\.share_expert\.", ".mlp.shared_experts."),
    (r"^model\.language_model\.", "model."),
)
"""What checkpoints call tensors, to what they are called here."""
STACKS = {
    f"moe.{name}.weight": Stacked("mlp.experts", (name,))
    for name in ("gate_proj", "up_proj", "down_proj")
}


class Step3p5Config(LlamaConfig, frozen=True, kw_only=True):
    rms_norm_eps: float = 1e-5
    num_sliding_attention_heads: int | None = None
    query_pre_attn_scalar: float | None = None
    mlp_layer_types: tuple[str, ...]
    moe_intermediate_size: int = 1280
    share_expert_dim: int = 1280
    n_routed_experts: int = 288
    num_experts_per_tok: int = 8
    moe_router_scaling_factor: float = 1.0
    swiglu_limits: tuple[float | None, ...] = ()
    swiglu_limits_shared: tuple[float | None, ...] = ()

    def heads(self, number: int) -> int:
        """Return the query heads of layer ``number``."""
        own = self.num_sliding_attention_heads if self.kind(number) == SLIDING else None
        return own or self.num_attention_heads

    def usual_kind(self, number: int) -> str:
        return FULL

    @property
    def attention_scale(self) -> float:
        return float(self.query_pre_attn_scalar or self.sizes[2]) ** -0.5

    def make_norm(self, ctx: Context, leaf: str) -> RMSNorm:
        eps = self.rms_norm_eps
        return RMSNorm(ctx, self.hidden_size, leaf=leaf, eps=eps, is_zero_centered=True)

    def make_mlp(self, ctx: Context, number: int) -> Module:
        activation = _activation(self.swiglu_limits_shared, number)
        if self.mlp_layer_types[number] == DENSE:
            return GatedMLP(ctx, self.hidden_size, self.intermediate_size, activation)
        shared = GatedMLP(ctx, self.hidden_size, self.share_expert_dim, activation)
        shared.alias = "shared_experts"
        routing = Routing(
            k=self.num_experts_per_tok,
            scores="sigmoid",
            is_normalized=True,
            factor=self.moe_router_scaling_factor,
        )
        return RoutedMoE(
            ctx,
            self.hidden_size,
            self.moe_intermediate_size,
            self.n_routed_experts,
            routing,
            bias_leaf=BIAS_LEAF,
            shared=shared,
            activation=_activation(self.swiglu_limits, number),
        )

    def make_attention(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return Step3p5Attention(ctx, self, rotaries, number)


class Step3p5Attention(Module):
    """W_o (attend(W_qkv x) · sigmoid(W_g x)), with one gate for each head."""

    def __init__(self, ctx: Context, c: Step3p5Config, rotaries: Rotaries, number: int) -> None:
        heads, (_, kv_heads, d) = c.heads(number), c.sizes
        kv = Part(kv_heads * d, unit=d, is_shared=True)
        leaves = {"q_proj": Part(heads * d, unit=d), "k_proj": kv, "v_proj": kv}
        self.inputs = Linear(ctx, c.hidden_size, {**leaves, "g_proj": Part(heads)})
        self.attend = Attention(
            ctx,
            heads,
            kv_heads,
            d,
            rotary=rotaries[c.kind(number)],
            qk_norm=c.rms_norm_eps,
            is_zero_centered=True,
            scale=c.attention_scale,
            window=c.window(number),
        )
        self._num_heads = self.attend.num_heads
        self._gate = ctx.ops.resolve(gate_heads, ctx.spec(size=d))
        self.out = Linear(ctx, heads * d, {"o_proj": c.hidden_size}, split="in")

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        both_TC = self.inputs(x_TD)
        qkv_TC, gate_TH = both_TC[:, : -self._num_heads], both_TC[:, -self._num_heads :]
        y_TC = self._gate(self.attend(qkv_TC, batch), gate_TH)
        return self.out(keep(y_TC, batch))


class Step3p5ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Step3p5Config
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        **WINDOWED,
        "partial_rotary_factor": None,
        "mlp_layer_types": (DENSE, SPARSE),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "use_head_wise_attn_gate": (True,),
        "use_moe_router_bias": (True,),
        "moe_router_activation": ("sigmoid",),
        "norm_expert_weight": (True,),
        "zero_centered": (True,),
        "use_rope_layers": (),
        "yarn_only_types": (FULL,),
        "use_bidirectional_attention": (False,),
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        given = _with_our_keys(config)
        super().__init__(ctx, given)
        first, count = given["num_hidden_layers"], int(config.get("num_nextn_predict_layers") or 0)
        drafts = "|".join(str(number) for number in range(first, first + count))
        why = "a layer that drafts tokens to come"
        self.skip = {**Model.skip, **({rf"^model\.layers\.({drafts})\.": why} if count else {})}

    def rotaries(self, ctx: Context, c: LlamaConfig, config: Mapping[str, Any]) -> Rotaries:
        """Return the tables of angles by kind of layer: each kind has a base of its own."""
        return rotaries_of_kinds(ctx, c, config, config["rope_parameters"])

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors with a matrix for each expert, all below ``mlp``."""
        return renamed(split_stacked(index, STACKS), NAMES)


class Step3p7ForConditionalGeneration(Step3p5ForCausalLM):
    """The same beside an encoder of images; it takes none."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = section(config, "text_config")
        if config.get("tie_word_embeddings") is not None:
            text["tie_word_embeddings"] = config["tie_word_embeddings"]
        super().__init__(ctx, text)
        images = r"^(model\.)?(vision_model|vit_large_projector|multi_modal_projector)\."
        self.skip = {**self.skip, images: NO_IMAGES}


def _activation(limits: Sequence[float | None], number: int) -> Activation:
    """Return how layer ``number`` joins gate and up; without a limit, or one of 0, nothing ends."""
    limit = limits[number] if limits else None
    return bounded_swiglu(limit) if limit else SILU


def _with_our_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in the keys of :class:`Step3p5Config`: the hub's are older."""
    given = {key: value for key, value in config.items() if value is not None}
    given |= {ours: given[key] for key, ours in OUR_KEYS.items() if key in given}
    count = int(given.get("num_hidden_layers") or 0)
    given |= {key: given[key][:count] for key in BY_LAYER if key in given}
    if "mlp_layer_types" not in given:
        sparse = _numbers(given.get("moe_layers_enum", range(3, count)))
        given["mlp_layer_types"] = [SPARSE if n in sparse else DENSE for n in range(count)]
    other = given.get("attention_other_setting") or {}
    for key, ours in (("num_attention_groups", "num_key_value_heads"), ("head_dim", "head_dim")):
        inside = f"attention_other_setting.{key}"
        require({inside: other.get(key)}, **{inside: (given.get(ours),)})
    if other.get("num_attention_heads"):
        given.setdefault("num_sliding_attention_heads", other["num_attention_heads"])
    return given | {"rope_parameters": _rope_by_kind(given)}


def _numbers(given: Any) -> set[int]:
    """Return numbers of layers, which may be written as one text, with commas."""
    items = given.split(",") if isinstance(given, str) else given
    return {int(item) for item in items if str(item).strip()}


def _rope_by_kind(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rotary parameters of each kind of layer; scaling is of those that see all."""
    count = int(given.get("num_hidden_layers") or 0)
    kinds = list(given.get("layer_types") or [FULL] * count)
    known = given.get("rope_parameters") or {}
    if all(isinstance(known.get(kind), Mapping) for kind in kinds):
        return {kind: dict(known[kind]) for kind in kinds}
    thetas, shares = given.get("rope_theta", 10_000.0), given.get("partial_rotary_factors")
    found: dict[str, dict[str, Any]] = {}
    for number, kind in enumerate(kinds):
        theta = thetas[number] if isinstance(thetas, list) else thetas
        rope = {"rope_theta": theta, "partial_rotary_factor": shares[number] if shares else 1.0}
        rope |= (given.get("rope_scaling") or {}) if kind == FULL else {}
        if found.setdefault(kind, rope) != rope:
            require({"rope_theta": rope}, rope_theta=(found[kind],))
    return found
