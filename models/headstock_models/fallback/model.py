"""Serves a class of transformers: builds it without values, and puts our layers in its places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from headstock.checkpoint.files import StoredTensor
from headstock.errors import UnsupportedError
from headstock.graph.build import Model
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Layer, Module
from headstock.graph.moe import QWEN_NAMES, Experts
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.attention import StepBatch
from headstock.quantization.plan import Role
from headstock_models.fallback.attention import CALL, NAME, PagedAttention, Step, register
from headstock_models.fallback.classes import (
    REMEDY,
    check_config,
    check_states,
    find_class,
    find_config,
)
from headstock_models.fallback.known_attention import (
    INPUTS,
    Angles,
    Attended,
    OurAttention,
    find_angles,
    find_attention,
)
from headstock_models.fallback.known_decoder import find_chain, gives_plain_logits
from headstock_models.fallback.known_parts import Fed, Normed, find_feed_forward, find_norm
from headstock_models.fallback.names import named_as_modules
from headstock_models.fallback.parts import (
    GivenStates,
    Lookup,
    Product,
    RoutedExperts,
    Tensors,
    is_experts,
    parameters_without_values,
)
from headstock_models.fallback.plan import Plan
from headstock_models.fallback.trace import Trace, hidden_states, trace_class

ROUTERS = ("gate", "router")
"""Names of products that choose experts: never quantised."""


class Held(Module):
    """A layer at the place of a module of transformers."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer


class TransformersForCausalLM(Model):
    """Any decoder that transformers has a class for which calls attention by its interface.

    Raises:
        UnsupportedError: It has none, or pages, steps of many requests or ranks cannot serve it.
    """

    length_keys: ClassVar[tuple[str, ...]] = (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "seq_length",
    )

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        found, read = find_class(_architecture(config)), find_config(config)
        check_states(found, read)
        check_config(found.__name__, read, ctx.limits.max_length)
        register()
        trace = trace_class(found, read)
        prefix = trace.prefix
        plan = Plan(read, prefix, trace.calls, ctx.tp.size)
        with parameters_without_values():
            self._whole: Any = found._from_config(
                read, attn_implementation=NAME, dtype=ctx.dtype
            ).eval()
        self._ctx, self._plan, self._step = ctx, plan, Step()
        self._held: list[tuple[str, Module]] = []
        self._head: LMHead | None = None
        self._put_attention(trace)
        self._put_layers(read, prefix)
        self._decoder = getattr(self._whole, prefix)
        self._chain = find_chain(ctx, self._decoder)
        setattr(self._whole, prefix, GivenStates())
        self._model_type, self._prefix = read.model_type, prefix
        for pattern in self._whole._keys_to_ignore_on_load_unexpected or ():
            self.skip = {**self.skip, pattern: "transformers leaves it out too"}

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """Refuse an architecture that transformers has no class for which could be served."""
        check_states(find_class(_architecture(config)), find_config(config))

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by the names that transformers' class has for them."""
        return named_as_modules(index, self._model_type, self._prefix)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield our layers by the paths of what they stand for."""
        for path, part in self._held:
            parent = path.rpartition(".")[0]
            if not isinstance(part, Layer):
                yield path, part
            else:
                yield (parent, Held(part)) if parent else ("", part)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        """Return the hidden state of every token. [T, D]"""
        self._step.batch = batch
        if self._chain is not None:
            return self._chain(ids_T, batch)
        return hidden_states(self._decoder, ids_T[None], batch.positions_T[None])[0]

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Return the logits of some tokens' hidden states. float32. [S, V]"""
        if self._head is not None:
            return self._head(hidden_SD)
        return self._whole(inputs_embeds=hidden_SD[None], use_cache=False).logits[0].float()

    def scores(self, hidden_SD: Tensor) -> Tensor:
        """Return the head's; where transformers' class does more, its order may change: logits."""
        return self.logits(hidden_SD) if self._head is None else self._head(hidden_SD, False)

    def _put_attention(self, trace: Trace) -> None:
        """Put ours in the place of attention modules, or else have them call our pages."""
        tables: dict[int, Angles | None] = {}
        for call in trace.calls:
            module = self._whole.get_submodule(call.path)
            made = trace.angles.get(call.path)
            if made is not None and id(made) not in tables:
                tables[id(made)] = find_angles(self._ctx, self._whole, made)
            angles = tables.get(id(made))
            known = find_attention(module, call, angles)
            is_divided = self._plan.divides(call.path)
            if known is None or not self._plan.pairs(call.path, INPUTS, known.out):
                given = {"is_divided": is_divided}
                setattr(module, CALL, PagedAttention(self._ctx, call, self._step, **given))
                continue
            ours = OurAttention(self._ctx, known, angles)
            self._replace(call.path, ours, Attended(ours, known, self._step, module))

    def _put_layers(self, config: Any, prefix: str) -> None:
        """Replace what costs, and hold the tensors of the rest."""
        whole, embedding = self._whole, None
        inputs, outputs = whole.get_input_embeddings(), whole.get_output_embeddings()
        replaced: list[str] = []
        for path, module in list(whole.named_modules()):
            if any(path.startswith(f"{other}.") for other in replaced):
                continue
            if module is inputs:
                layer = embedding = self._embedding(path, module)
                self._replace(path, layer, Lookup(layer, module))
            elif module is outputs:
                layer = self._output_layer(path, module, embedding, config)
                self._replace(path, layer, Product(layer, module))
                if isinstance(layer, LMHead) and gives_plain_logits(whole, prefix, path):
                    self._head = layer
            elif (known := self._known(path, module)) is not None:
                self._replace(path, *known)
                replaced.append(path)
            elif is_experts(module):
                layer = self._experts(module)
                self._replace(path.rpartition(".")[0] + ".", layer, RoutedExperts(layer), at=path)
                replaced.append(path)
            elif type(module) is nn.Linear:
                layer = self._linear(path, module)
                self._replace(path, layer, Product(layer, module))
            else:
                self._hold(path, module)

    def _known(self, path: str, module: nn.Module) -> tuple[Module, nn.Module] | None:
        """Return a module that ours can stand for, and what stands in its place."""
        norm = None if self._float32_names(path, module) else find_norm(module)
        if norm is not None:
            layer = norm.build(self._ctx, path.rpartition(".")[2])
            return layer, Normed(layer, norm, module)
        feed = find_feed_forward(module)
        if feed is None or not self._plan.pairs(path, feed.names[:-1], feed.names[-1]):
            return None
        layer = feed.build(self._ctx)
        return layer, Fed(layer, module)

    def _replace(self, path: str, layer: Module, part: nn.Module, *, at: str = "") -> None:
        self._held.append((path, layer))
        self._whole.set_submodule(at or path, part)

    def _hold(self, path: str, module: nn.Module) -> None:
        """Hold a module's own tensors, and move the buffers that no checkpoint has."""
        where = self._ctx.device.torch_device
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(where)
        tensors = Tensors(self._ctx, module, self._float32_names(path, module))
        if tensors.leaves():
            self._held.append((f"{path}." if path else "", tensors))

    def _float32_names(self, path: str, module: nn.Module) -> list[str]:
        """Return the parameters that are kept in float32 whatever the model computes in."""
        names = type(self._whole)._keep_in_fp32_modules_strict or ()
        return [n for n in module._parameters if any(k in f"{path}.{n}".split(".") for k in names)]

    def _embedding(self, path: str, module: Any) -> Embedding:
        _, _, leaf = path.rpartition(".")
        size, features = module.weight.shape
        return Embedding(self._ctx, size, features, leaf=leaf)

    def _output_layer(
        self, path: str, module: Any, embedding: Embedding | None, config: Any
    ) -> Layer:
        _, _, leaf = path.rpartition(".")
        size, features = module.weight.shape
        if module.bias is not None:
            part = Part(size, unit=size, is_shared=True)
            return Linear(self._ctx, features, {leaf: part}, has_bias=True, role=Role.ROUTER)
        tied = embedding if getattr(config, "tie_word_embeddings", False) else None
        return LMHead(self._ctx, size, features, leaf=leaf, tied=tied)

    def _linear(self, path: str, module: nn.Linear) -> Linear:
        _, _, leaf = path.rpartition(".")
        sizes = (module.in_features, module.out_features)
        part, split = self._plan.of(path, *sizes)
        role = Role.ROUTER if leaf in ROUTERS else Role.MATRIX
        given = {"split": split, "has_bias": module.bias is not None, "role": role}
        return Linear(self._ctx, module.in_features, {leaf: part}, **given)

    def _experts(self, module: Any) -> Experts:
        count, _, hidden_size = module.gate_up_proj.shape
        activation = _activation(module)
        # How many experts a token has is known to the router; this sizes what providers prepare.
        k = getattr(module.config, "num_experts_per_tok", None) or count
        size = module.down_proj.shape[2]
        names = self._plan.expert_names or QWEN_NAMES
        return Experts(self._ctx, hidden_size, size, count, k, names=names, activation=activation)


def _architecture(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or ["none"])[0])


def _activation(module: Any) -> Any:
    """Return the activation of experts.

    Raises:
        UnsupportedError: They compute something that ours do not.
    """
    plain = {"is_transposed": False, "has_bias": False, "has_gate": True, "is_concatenated": True}
    odd = [name for name, usual in plain.items() if getattr(module, name, usual) != usual]
    odd += ["has_post_expert_norm"] * bool(getattr(module, "has_post_expert_norm", False))
    gate = getattr(type(module), "_apply_gate", None)
    odd += ["_apply_gate"] * (getattr(gate, "__name__", "") not in ("", "_default_apply_gate"))
    if not hasattr(module, "is_transposed"):  # Set where experts are called in the common way.
        odd.append("forward")
    name = str(getattr(getattr(module, "config", None), "hidden_act", None))
    if odd or name not in BY_CONFIG_NAME:
        raise UnsupportedError(
            f"transformers' {type(module).__name__} has experts that are not served:"
            f" {', '.join(odd) or f'hidden_act = {name!r}'}.",
            remedy=REMEDY,
        )
    return BY_CONFIG_NAME[name]
