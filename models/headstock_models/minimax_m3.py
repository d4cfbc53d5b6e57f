"""MiniMax M3, text alone: attention that reads the blocks of tokens which an indexer chooses.

Shapes: T tokens in the step, D hidden size, K key/value heads, k blocks chosen.
Source: MiniMax 2026, "MiniMax-M3"; names as on the hub, or as transformers calls them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.attention import Attention
from headstock.graph.block_indexer import BlockIndexer
from headstock.graph.build import Model
from headstock.graph.config import require, section
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, QKVLinear
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import Rotary, rotary_parameters, rotary_size
from headstock.graph.routed_moe import RoutedMoE
from headstock.graph.stacked import Stacked, split_stacked
from headstock.ops.activation_kinds import Activation, clipped_swiglu
from headstock.ops.attention import StepBatch
from headstock.ops.routing import Routing
from headstock_models.image_text import NO_IMAGES, TextOnly, image_text_names
from headstock_models.llama import FULL, LlamaConfig, LlamaForCausalLM, Rotaries
from headstock_models.stored_rows import renamed

SPARSE_ATTENTION = "minimax_m3_sparse"
DENSE, SPARSE = "dense", "sparse"
INDEXER: Mapping[str, str] = {
    "index_n_heads": "sparse_num_index_heads",
    "index_head_dim": "sparse_index_dim",
    "index_block_size": "sparse_block_size",
    "index_topk_blocks": "sparse_topk_blocks",
    "index_local_blocks": "sparse_local_block",
}
"""Keys of today to those that the hub has in ``sparse_attention_config``."""
EXPERTS: Mapping[str, Stacked] = {
    "experts.gate_up_proj": Stacked("experts", ("w1", "w3")),
    "experts.down_proj": Stacked("experts", ("w2",)),
}
RENAMED: Sequence[tuple[str, str]] = (
    (r"\.block_sparse_moe\.e_score_correction_bias$", ".mlp.gate.e_score_correction_bias"),
    (r"\.block_sparse_moe\.", ".mlp."),
    (r"\.self_attn\.index_(q|k)_(proj|norm)\.", r".self_attn.indexer.\1_\2."),
)
"""What the hub calls tensors, to what they are called here."""


class MiniMaxM3Config(LlamaConfig, frozen=True, kw_only=True):
    head_dim: int | None = 128
    num_local_experts: int = 128
    num_experts_per_tok: int = 4
    dense_intermediate_size: int = 12288
    shared_intermediate_size: int = 3072
    routed_scaling_factor: float = 2.0
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    mlp_layer_types: tuple[str, ...] = ()
    index_n_heads: int = 4
    index_head_dim: int = 128
    index_block_size: int = 128
    index_topk_blocks: int = 16
    index_local_blocks: int = 1
    rope_theta_default: ClassVar[float] = 5_000_000.0

    @property
    def activation(self) -> Activation:
        """Of dense layers and of experts."""
        return clipped_swiglu(self.swiglu_limit, self.swiglu_alpha)

    def chooses_blocks(self, number: int) -> bool:
        """Whether layer ``number`` has an indexer."""
        return self.kind(number) == SPARSE_ATTENTION

    def make_norm(self, ctx: Context, leaf: str) -> RMSNorm:
        return RMSNorm(
            ctx, self.hidden_size, leaf=leaf, eps=self.rms_norm_eps, is_zero_centered=True
        )

    def make_mlp(self, ctx: Context, number: int) -> Module:
        if self.mlp_layer_types and self.mlp_layer_types[number] == DENSE:
            return GatedMLP(ctx, self.hidden_size, self.dense_intermediate_size, self.activation)
        shared = GatedMLP(ctx, self.hidden_size, self.shared_intermediate_size, self.activation)
        shared.alias = "shared_experts"
        routing = Routing(
            k=self.num_experts_per_tok,
            scores="sigmoid",
            is_normalized=True,
            factor=self.routed_scaling_factor,
        )
        return RoutedMoE(
            ctx,
            self.hidden_size,
            self.intermediate_size,
            self.num_local_experts,
            routing,
            bias_leaf="gate.e_score_correction_bias",
            names={"gate": "w1", "up": "w3", "down": "w2"},
            shared=shared,
            activation=self.activation,
        )

    def make_layer(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return M3Layer(ctx, self, rotaries, number)


class M3Attention(Module):
    """W_o attend(…) with norms on q and k, over all tokens or over the chosen blocks."""

    def __init__(self, ctx: Context, c: MiniMaxM3Config, rotaries: Rotaries, number: int) -> None:
        rotary, heads = rotaries[FULL], c.sizes
        self.qkv = QKVLinear(ctx, c.hidden_size, *heads)
        self.indexer = None
        if c.chooses_blocks(number):
            self.indexer = BlockIndexer(
                ctx,
                c.hidden_size,
                num_heads=c.index_n_heads,
                head_dim=c.index_head_dim,
                rotary=rotary,
                eps=c.rms_norm_eps,
                is_zero_centered=True,
                block_size=c.index_block_size,
                num_chosen=c.index_topk_blocks,
                num_local=c.index_local_blocks,
            )
        self.attend = Attention(
            ctx,
            *heads,
            rotary=rotary,
            qk_norm=c.rms_norm_eps,
            is_zero_centered=True,
            block_size=c.index_block_size if self.indexer is not None else 0,
        )
        self.out = Linear(ctx, heads[0] * heads[2], {"o_proj": c.hidden_size}, split="in")

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        chosen_TKk = None if self.indexer is None else self.indexer(x_TD, batch)
        return self.out(keep(self.attend(self.qkv(x_TD), batch, chosen_TKk), batch))


class M3Layer(Module):
    """Attention, then the feed-forward layer, each on the normalised residual stream."""

    def __init__(self, ctx: Context, c: MiniMaxM3Config, rotaries: Rotaries, number: int) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = c.make_norm(ctx, "input_layernorm")
        self.self_attn = M3Attention(ctx, c, rotaries, number)
        self.mlp_norm = c.make_norm(ctx, "post_attention_layernorm")
        self.mlp = c.make_mlp(ctx, number)

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD = self.self_attn(x_TD, batch, self.keep)
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        return self.mlp(x_TD), total_TD


class MiniMaxM3VLForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = MiniMaxM3Config
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        "hidden_act": ("silu", "swish", "swigluoai"),  # whose parameters have keys of their own
        "layer_types": (FULL, SPARSE_ATTENTION),
        "mlp_layer_types": (DENSE, SPARSE),
        "partial_rotary_factor": None,
        "use_gemma_norm": (True,),
        "use_qk_norm": (True,),
        "qk_norm_type": ("per_head",),
        "scoring_func": ("sigmoid",),
        "use_routing_bias": (True,),
        "n_shared_experts": (1,),
        "attention_bias": (False,),
    }
    skip: Mapping[str, str] = {**Model.skip, r"(^|\.)mtp\.": "layers that draft tokens to come"}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        super().__init__(ctx, _today(config))

    def rotaries(self, ctx: Context, c: LlamaConfig, config: Mapping[str, Any]) -> Rotaries:
        """Return the table of angles."""
        if "partial_rotary_factor" in {**config, **rotary_parameters(config)}:
            # Which counts where transformers has written a default beside it.
            config = {key: value for key, value in config.items() if key != "rotary_dim"}
        return {FULL: Rotary(ctx, rotary_size(config, c.sizes[2]), config)}

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names, with a tensor for each matrix."""
        split = split_stacked(renamed(index, RENAMED), EXPERTS)
        parts = (p for tensor in split.values() for p in _parts(tensor))
        return {tensor.name: tensor for tensor in parts}


class MiniMaxM3SparseForConditionalGeneration(Model):
    """The same beside an encoder of images; it takes none."""

    skip: Mapping[str, str] = {
        **MiniMaxM3VLForCausalLM.skip,
        r"^(model\.)?vision_tower\.": NO_IMAGES,
        r"^(model\.)?multi_modal_projector\.": NO_IMAGES,
        r"^patch_merge_mlp\.": NO_IMAGES,
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = section(config, "text_config")
        if config.get("tie_word_embeddings"):
            text["tie_word_embeddings"] = True
        decoder = MiniMaxM3VLForCausalLM(ctx, text)
        self._named = decoder.named
        self.model = TextOnly(decoder.model)
        self.lm_head = decoder.lm_head

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names, with a tensor for each matrix."""
        return self._named(image_text_names(index))


def _today(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the keys of today in place of those that the hub has.

    Raises:
        UnsupportedError: Blocks are chosen otherwise, or by other heads than those that read them.
    """
    found = dict(config)
    sparse = dict(config.get("sparse_attention_config") or {})
    require(
        sparse,
        use_sparse_attention=(True,),
        sparse_score_type=("max",),
        sparse_init_block=(0,),
    )
    found |= {key: sparse[old] for key, old in INDEXER.items() if old in sparse}
    chosen = sparse.get("sparse_attention_freq")
    if chosen is not None and not config.get("layer_types"):
        found["layer_types"] = [SPARSE_ATTENTION if layer else FULL for layer in chosen]
    values_off = sparse.get("sparse_disable_index_value") or chosen or ()
    if any(layer and not off for layer, off in zip(chosen or (), values_off, strict=False)):
        require({"sparse_disable_index_value": values_off}, sparse_disable_index_value=(chosen,))
    routed = config.get("moe_layer_freq")
    if routed is not None and not config.get("mlp_layer_types"):
        found["mlp_layer_types"] = [SPARSE if layer else DENSE for layer in routed]
    if SPARSE_ATTENTION in (found.get("layer_types") or ()):
        heads = {"index_n_heads": 4} | found
        require(heads, index_n_heads=(found.get("num_key_value_heads"),))
        most = found.get("index_topk_blocks", 16)
        require(found, index_local_blocks=range(most + 1))
    return found


def _parts(tensor: StoredTensor) -> Iterator[StoredTensor]:
    """Yield the gate's rows and the others' of a matrix that has both; else the tensor."""
    prefix, fused, leaf = tensor.name.rpartition(".gate_up_proj.")
    if not fused:
        yield tensor
        return
    size = tensor.shape[0] // 2
    for name, first in (("gate_proj", 0), ("up_proj", size)):
        yield replace(
            tensor,
            name=f"{prefix}.{name}.{leaf}",
            shape=(size, *tensor.shape[1:]),
            num_bytes=tensor.num_bytes // 2,
            read=partial(_read_rows, tensor, first),
        )


def _read_rows(tensor: StoredTensor, first: int, begin: int, end: int) -> Mapping[str, Any]:
    return tensor.read(first + begin, first + end)
