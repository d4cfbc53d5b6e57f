"""Serves a class of transformers: builds it without values, and puts our layers in its places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
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
from headstock_models.fallback.attention import (
    CALL,
    NAME,
    AttentionCall,
    PagedAttention,
    Step,
    find_calls,
    register,
)
from headstock_models.fallback.classes import REMEDY, check_config, find_class, find_config
from headstock_models.fallback.names import named_as_modules
from headstock_models.fallback.parts import (
    GivenStates,
    Lookup,
    Product,
    RoutedExperts,
    Tensors,
    UntouchedExperts,
    parameters_without_values,
)
from headstock_models.fallback.plan import Plan

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
        check_config(found.__name__, read, ctx.limits.max_length)
        register()
        calls, prefix = _trace(found, read)
        plan = Plan(read, prefix, calls, ctx.tp.size)
        with parameters_without_values():
            self._whole: Any = found._from_config(
                read, attn_implementation=NAME, dtype=ctx.dtype
            ).eval()
        self._ctx, self._plan, self._step = ctx, plan, Step()
        self._held: list[tuple[str, Layer]] = []
        self._put_layers(read)
        for call in calls:
            module = self._whole.get_submodule(call.path)
            is_divided = plan.divides(call.path)
            setattr(module, CALL, PagedAttention(ctx, call, self._step, is_divided=is_divided))
        self._decoder = getattr(self._whole, prefix)
        setattr(self._whole, prefix, GivenStates())
        self._model_type, self._prefix = read.model_type, prefix
        for pattern in self._whole._keys_to_ignore_on_load_unexpected or ():
            self.skip = {**self.skip, pattern: "transformers leaves it out too"}

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """Refuse an architecture that transformers has no class for which could be served."""
        find_class(_architecture(config))

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by the names that transformers' class has for them."""
        return named_as_modules(index, self._model_type, self._prefix)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield our layers by the paths of what they stand for."""
        for path, layer in self._held:
            parent = path.rpartition(".")[0]
            yield (parent, Held(layer)) if parent else ("", layer)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        """Return the hidden state of every token. [T, D]"""
        self._step.batch = batch
        return _hidden(self._decoder, ids_T[None], batch.positions_T[None])[0]

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Return the logits of some tokens' hidden states. float32. [S, V]"""
        return self._whole(inputs_embeds=hidden_SD[None], use_cache=False).logits[0].float()

    def scores(self, hidden_SD: Tensor) -> Tensor:
        """Return the logits: what transformers does to them is not known to keep their order."""
        return self.logits(hidden_SD)

    def _put_layers(self, config: Any) -> None:
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
                layer = self._head(path, module, embedding, config)
                self._replace(path, layer, Product(layer, module))
            elif _is_experts(module):
                layer = self._experts(module)
                self._replace(path.rpartition(".")[0] + ".", layer, RoutedExperts(layer), at=path)
                replaced.append(path)
            elif type(module) is nn.Linear:
                layer = self._linear(path, module)
                self._replace(path, layer, Product(layer, module))
            else:
                self._hold(path, module)

    def _replace(self, path: str, layer: Layer, part: nn.Module, *, at: str = "") -> None:
        self._held.append((path, layer))
        self._whole.set_submodule(at or path, part)

    def _hold(self, path: str, module: nn.Module) -> None:
        """Hold a module's own tensors, and move the buffers that no checkpoint has."""
        where = self._ctx.device.torch_device
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(where)
        names = type(self._whole)._keep_in_fp32_modules_strict or ()
        own = [n for n in module._parameters if any(k in f"{path}.{n}".split(".") for k in names)]
        tensors = Tensors(self._ctx, module, own)
        if tensors.leaves():
            self._held.append((f"{path}." if path else "", tensors))

    def _embedding(self, path: str, module: Any) -> Embedding:
        _, _, leaf = path.rpartition(".")
        size, features = module.weight.shape
        return Embedding(self._ctx, size, features, leaf=leaf)

    def _head(self, path: str, module: Any, embedding: Embedding | None, config: Any) -> Layer:
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


def _hidden(decoder: Any, ids: Tensor, positions: Tensor) -> Tensor:
    return decoder(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state


def _prefix_of(model: Any) -> str:
    """Return the attribute that holds the decoder.

    Raises:
        UnsupportedError: It is none of the usual ones.
    """
    for name in (model.base_model_prefix, "model", "transformer"):
        if isinstance(getattr(model, name, None), nn.Module):
            return name
    raise UnsupportedError(
        f"transformers' {type(model).__name__} keeps its decoder in an unusual place.",
        remedy=REMEDY,
    )


def _trace(found: Any, config: Any) -> tuple[list[AttentionCall], str]:
    """Return how the class calls attention, and the attribute that holds its decoder.

    Raises:
        UnsupportedError: In a way that pages cannot serve, or not in every layer.
    """
    with torch.device("meta"):
        model = found._from_config(config, attn_implementation=NAME).eval()
    for path, module in list(model.named_modules()):
        if _is_experts(module):
            model.set_submodule(path, UntouchedExperts())
    prefix = _prefix_of(model)
    decoder = getattr(model, prefix)
    calls = find_calls(model, lambda ids, positions: _hidden(decoder, ids, positions))
    num_layers = config.num_hidden_layers
    if not calls or len(calls) % num_layers:
        raise UnsupportedError(
            f"transformers' {found.__name__} calls attention {len(calls)} times in"
            f" {num_layers} layers: the others keep something that the cache does not.",
            remedy=REMEDY,
        )
    kinds = getattr(config, "layer_types", None) or ()
    windowed = sum(kind == "sliding_attention" for kind in kinds)
    _check_head(model, prefix, config)
    if windowed != sum(call.window is not None for call in calls) and kinds:
        raise UnsupportedError(
            f"transformers' {found.__name__} has {windowed} layers of sliding_attention in"
            " layer_types, and does not say so when it calls attention.",
            remedy=REMEDY,
        )
    return calls, prefix


def _check_head(model: Any, prefix: str, config: Any) -> None:
    """Refuse a class whose output layer cannot be asked alone.

    Raises:
        UnsupportedError: It looks into the decoder, or does not run on shapes.
    """
    setattr(model, prefix, GivenStates())
    hidden = torch.empty((1, 2, config.hidden_size), device="meta")
    try:
        model(inputs_embeds=hidden, use_cache=False)
    except Exception as error:
        raise UnsupportedError(
            f"transformers' {type(model).__name__} does not make logits of hidden states alone"
            f" ({type(error).__name__}: {error}).",
            remedy=REMEDY,
        ) from error


def _is_experts(module: Any) -> bool:
    has_both = hasattr(module, "gate_up_proj") and hasattr(module, "down_proj")
    return has_both and isinstance(module.gate_up_proj, nn.Parameter)


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
