"""DeepSeek V4: a window of tokens and entries for those before, several residual streams.

Each layer attends to its last tokens; of those before, some layers read entries of 4 tokens each
that an indexer chooses, others all entries of 128. The first layers take experts by a table of ids.

Shapes: T tokens in the step, D hidden size, C streams side by side, Q features of queries' latents.
Source: DeepSeek-AI 2026, "DeepSeek-V4"; names as on the hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.compressed_attention import CompressedAttention
from headstock.graph.config import ModelConfig, read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.entries import Compressor, EntryIndexer
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.grouped_linear import GroupedLinear
from headstock.graph.hyper_connections import HyperConnection, StreamMerge
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import Rotary, rotary_parameters
from headstock.graph.routed_moe import RoutedMoE
from headstock.graph.token_routed_moe import TokenRoutedMoE
from headstock.ops.activation_kinds import limited_swiglu
from headstock.ops.attention import StepBatch
from headstock.ops.hyper_connections import spread_streams
from headstock.ops.moe import Matrix
from headstock.ops.routing import SQRT_SOFTPLUS, Routing

SLIDING = "sliding_attention"
CHOSEN = "compressed_sparse_attention"
HEAVY = "heavily_compressed_attention"
BY_RATIO = {0: SLIDING, 4: CHOSEN, 128: HEAVY}
"""Kinds of layers by what ``compress_ratios`` has for them."""
RATES = {CHOSEN: 4, HEAVY: 128}
BY_TABLE, BY_SCORES = "hash_moe", "moe"
NAMES: Mapping[Matrix, str] = {"gate": "w1", "up": "w3", "down": "w2"}


class DeepseekV4Config(ModelConfig, frozen=True, kw_only=True):
    vocab_size: int = 129_280
    hidden_size: int = 4096
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 43
    num_attention_heads: int = 64
    head_dim: int = 512
    q_lora_rank: int = 1024
    partial_rotary_factor: float = 64 / 512
    n_routed_experts: int = 256
    num_experts_per_tok: int = 6
    routed_scaling_factor: float = 1.5
    layer_types: tuple[str, ...] = ()
    mlp_layer_types: tuple[str, ...] = ()
    compress_rates: dict[str, int] = {}
    rope_theta: float = 10_000.0
    compress_rope_theta: float = 160_000.0
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    swiglu_limit: float = 10.0
    sliding_window: int = 128
    o_groups: int = 8
    o_lora_rank: int = 1024
    index_n_heads: int = 64
    index_head_dim: int = 128
    index_topk: int = 512
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False

    @property
    def rotary_dim(self) -> int:
        """Rotated features of a head, its last ones."""
        return int(self.head_dim * self.partial_rotary_factor)

    def make_norm(self, ctx: Context, leaf: str, size: int) -> RMSNorm:
        return RMSNorm(ctx, size, leaf=leaf, eps=self.rms_norm_eps)

    def make_connection(self, ctx: Context, leaf: str) -> HyperConnection:
        return HyperConnection(
            ctx,
            leaf,
            self.hidden_size,
            num_streams=self.hc_mult,
            norm_eps=self.rms_norm_eps,
            eps=self.hc_eps,
            num_rounds=self.hc_sinkhorn_iters,
        )

    def make_experts(self, ctx: Context, number: int) -> RoutedMoE:
        size, between = self.hidden_size, self.moe_intermediate_size
        activation = limited_swiglu(self.swiglu_limit)
        shared = GatedMLP(ctx, size, between, activation, names=NAMES)
        shared.alias = "shared_experts"
        routing = Routing(
            k=self.num_experts_per_tok,
            scores=SQRT_SOFTPLUS,
            is_normalized=True,
            factor=self.routed_scaling_factor,
        )
        args = (ctx, size, between, self.n_routed_experts, routing)
        options: dict[str, Any] = {"shared": shared, "names": NAMES, "activation": activation}
        if self.mlp_layer_types[number] == BY_TABLE:
            table = {"vocab_size": self.vocab_size, "table": "gate.tid2eid"}
            return TokenRoutedMoE(*args, **table, **options)
        return RoutedMoE(*args, bias_leaf="gate.bias", **options)


class DeepseekV4Attention(Module):
    """W_b of groups of W_a attend(W_q norm(W_qa x), norm(W_kv x))."""

    def __init__(
        self, ctx: Context, c: DeepseekV4Config, rotaries: Mapping[str, Rotary], number: int
    ) -> None:
        size, heads, head_dim = c.hidden_size, c.num_attention_heads, c.head_dim
        kind = c.layer_types[number]
        rotary = rotaries["main" if kind == SLIDING else "compress"]
        rate = 0 if kind == SLIDING else c.compress_rates[kind]
        # Latents and vectors are the same for all heads: every rank computes all of them.
        self._sizes = (c.q_lora_rank, head_dim)
        down = {"wq_a": c.q_lora_rank, "wkv": head_dim}
        self.down = Linear(ctx, size, down, split="none")
        self.q_norm = c.make_norm(ctx, "q_norm", c.q_lora_rank)
        self.kv_norm = c.make_norm(ctx, "norm", head_dim)
        self.queries = Linear(ctx, c.q_lora_rank, {"wq_b": Part(heads * head_dim, unit=head_dim)})
        self.attend = CompressedAttention(
            ctx,
            heads,
            head_dim,
            window=c.sliding_window,
            rotary=rotary,
            eps=c.rms_norm_eps,
            leaf="attn_sink",
            rate=rate,
            num_chosen=c.index_topk if kind == CHOSEN else 0,
        )
        options: dict[str, Any] = {"rate": rate, "rotary": rotary, "eps": c.rms_norm_eps}
        self.compressor = None
        if rate:
            self.compressor = Compressor(
                ctx,
                size,
                head_dim,
                is_overlapped=kind == CHOSEN,
                dtype=ctx.kv_dtype or ctx.dtype,
                **options,
            )
        self.indexer = None
        if kind == CHOSEN:
            self.indexer = EntryIndexer(
                ctx,
                size,
                c.q_lora_rank,
                num_heads=c.index_n_heads,
                head_dim=c.index_head_dim,
                num_chosen=c.index_topk,
                **options,
            )
        groups, rank = c.o_groups, c.o_lora_rank
        wide = heads * head_dim // groups
        self.narrow = GroupedLinear(ctx, wide, rank, num_groups=groups, leaf="wo_a")
        self.out = Linear(ctx, groups * rank, {"wo_b": size}, split="in")

    def forward(self, x_TD: Tensor, batch: StepBatch) -> Tensor:
        q_TQ, kv_TX = self.down(x_TD).split(self._sizes, 1)
        q_TQ = self.q_norm(q_TQ, None)[0]
        entries = None if self.compressor is None else self.compressor(x_TD, batch)
        chosen_Tk = None if self.indexer is None else self.indexer(x_TD, q_TQ, batch)
        kv_TX = self.kv_norm(kv_TX, None)[0]
        y_TX = self.attend(self.queries(q_TQ), kv_TX, batch, entries, chosen_Tk)
        return self.out(self.narrow(y_TX))


class DeepseekV4Layer(Module):
    """Attention, then experts, each of a sum of the streams that it is mixed into again."""

    def __init__(
        self, ctx: Context, c: DeepseekV4Config, rotaries: Mapping[str, Rotary], number: int
    ) -> None:
        self.is_by_table = c.mlp_layer_types[number] == BY_TABLE
        # Ids of tokens that are left out would have to be left out, too.
        is_last = number == c.num_hidden_layers - 1 and not self.is_by_table
        self.keep = LastOfRows(ctx, is_last=is_last)
        self.attention_streams = c.make_connection(ctx, "hc_attn")
        self.attention_norm = c.make_norm(ctx, "attn_norm", c.hidden_size)
        self.attn = DeepseekV4Attention(ctx, c, rotaries, number)
        self.expert_streams = c.make_connection(ctx, "hc_ffn")
        self.expert_norm = c.make_norm(ctx, "ffn_norm", c.hidden_size)
        self.ffn = c.make_experts(ctx, number)

    def forward(self, x_TC: Tensor, ids_T: Tensor, batch: StepBatch) -> Tensor:
        y_TD, *mixing = self.attention_streams(x_TC)
        y_TD = self.attn(self.attention_norm(y_TD, None)[0], batch)
        x_TC = self.keep(self.attention_streams.expand(x_TC, y_TD, *mixing), batch)
        y_TD, *mixing = self.expert_streams(x_TC)
        y_TD = self.expert_norm(y_TD, None)[0]
        y_TD = self.ffn(y_TD, ids_T) if self.is_by_table else self.ffn(y_TD)
        return self.expert_streams.expand(x_TC, y_TD, *mixing)


class DeepseekV4Decoder(Module):
    def __init__(self, ctx: Context, c: DeepseekV4Config, rotaries: Mapping[str, Rotary]) -> None:
        size, streams = c.hidden_size, c.hc_mult
        self.embed = Embedding(ctx, c.vocab_size, size, leaf="embed_tokens")
        self.layers = [
            DeepseekV4Layer(ctx, c, rotaries, number) for number in range(c.num_hidden_layers)
        ]
        eps = {"norm_eps": c.rms_norm_eps, "eps": c.hc_eps}
        self.merge = StreamMerge(ctx, "hc_head", size, num_streams=streams, **eps)
        self.norm = c.make_norm(ctx, "norm", size)
        spec = ctx.spec(num_streams=streams, size=size)
        self._spread = partial(ctx.ops.resolve(spread_streams, spec), num_streams=streams)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TC = self._spread(self.embed(ids_T))
        for layer in self.layers:
            x_TC = layer(x_TC, ids_T, batch)
        return self.norm(self.merge(x_TC), None)[0]


class DeepseekV4ForCausalLM(Model):
    """A decoder with an output layer, perhaps tied to the embedding."""

    skip = {**Model.skip, r"^(model\.)?mtp\.": "a layer that drafts tokens to come"}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        config = modern(config)
        _refuse(config)
        c = read_config(DeepseekV4Config, config)
        rotaries = {
            kind: Rotary(ctx, c.rotary_dim, config, is_interleaved=True, layer_kind=kind)
            for kind in ("main", "compress")
        }
        self.model = DeepseekV4Decoder(ctx, c, rotaries)
        tied = self.model.embed if c.tie_word_embeddings else None
        self.lm_head = LMHead(ctx, c.vocab_size, c.hidden_size, leaf="lm_head", tied=tied)

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return tensors by names that begin with ``model.``, which the hub's do not."""
        return {
            name: replace(tensor, name=name)
            for tensor in index.values()
            for name in (_our_name(tensor.name),)
        }


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with the keys of transformers 5, whatever age it is of."""
    given = {name: value for name, value in config.items() if value is not None}
    count = given.get("num_hidden_layers", 43)
    if "layer_types" not in given:
        ratios = given.get("compress_ratios")
        if ratios is not None:
            require(
                {"compress_ratios": sorted({*ratios} - {*BY_RATIO}) or None}, compress_ratios=()
            )
            given["layer_types"] = [BY_RATIO[ratio] for ratio in ratios]
        else:
            others = [CHOSEN if number % 2 else HEAVY for number in range(max(count - 2, 0))]
            given["layer_types"] = [HEAVY, HEAVY, *others]
    if "mlp_layer_types" not in given:
        by_table = given.get("num_hash_layers", 3)
        given["mlp_layer_types"] = [BY_TABLE if n < by_table else BY_SCORES for n in range(count)]
    for key in ("layer_types", "mlp_layer_types"):
        given[key] = given[key][:count]
    rates = dict(given.get("compress_rates") or RATES)
    for kind, key in ((CHOSEN, "compress_rate_csa"), (HEAVY, "compress_rate_hca")):
        rates[kind] = given.get(key, rates.get(kind, RATES[kind]))
    given["compress_rates"] = rates
    if "partial_rotary_factor" not in given and "qk_rope_head_dim" in given:
        head_dim = given.get("head_dim", 512)
        given["partial_rotary_factor"] = given["qk_rope_head_dim"] / head_dim
    return given | {"rope_parameters": _rotary_kinds(given), "rope_scaling": None}


def _rotary_kinds(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary parameters of layers without entries, ``main``, and of others."""
    found = given.get("rope_parameters") or {}
    if isinstance(found.get("main"), Mapping) and isinstance(found.get("compress"), Mapping):
        return {kind: found[kind] for kind in ("main", "compress")}
    compress = rotary_parameters(given) | {"rope_theta": given.get("compress_rope_theta", 160e3)}
    if compress["rope_type"] == "yarn":
        compress.setdefault("attention_factor", 1.0)
    main = {"rope_type": "default", "rope_theta": given.get("rope_theta", 10e3)}
    return {"main": main, "compress": compress}


def _refuse(config: Mapping[str, Any]) -> None:
    """Refuse what is not computed."""
    require(config, hidden_act=("silu",), scoring_func=("sqrtsoftplus",), norm_topk_prob=(True,))
    require(config, attention_bias=(False,), mlp_bias=(False,), num_key_value_heads=(1,))
    require(config, n_shared_experts=(1,))
    for kind in config["layer_types"]:
        require({"layer_types": kind}, layer_types=(SLIDING, CHOSEN, HEAVY))
    for kind in config["mlp_layer_types"]:
        require({"mlp_layer_types": kind}, mlp_layer_types=(BY_TABLE, BY_SCORES))


def _our_name(name: str) -> str:
    """Return the name of this model's leaf for one of the hub's, or of transformers'."""
    if name.startswith(("mtp.", "lm_head.")):
        return name
    name = name.removeprefix("model.")
    if name.startswith("head."):
        return f"lm_{name}"
    if name.startswith("embed."):
        return f"model.embed_tokens.{name.removeprefix('embed.')}"
    return f"model.{name.replace('hc_head.hc_', 'hc_head_')}"
