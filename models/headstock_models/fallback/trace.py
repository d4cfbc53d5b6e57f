"""A step of a class of transformers on shapes alone: how it calls attention, with what angles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headstock.errors import UnsupportedError
from headstock_models.fallback.attention import NAME, AttentionCall, find_calls
from headstock_models.fallback.classes import REMEDY
from headstock_models.fallback.parts import GivenStates, UntouchedExperts, is_experts

ANGLES = "position_embeddings"
"""What attention modules call the cosines and sines that they are passed."""


@dataclass(frozen=True, slots=True)
class AnglesCall:
    """A call that makes cosines and sines for all tokens of a step.

    Attributes:
        path: Of the module.
        args: Of its call.
        options: Likewise.
    """

    path: str
    args: tuple[Any, ...]
    options: Mapping[str, Any]

    def table(self, whole: Any, length: int) -> tuple[Tensor, Tensor]:
        """Return what the module of that path makes for positions from 0 on. float32. [L, C] each.

        Args:
            whole: The model, whose buffers have values.
            length: L.
        """

        def of_positions(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            is_index = not value.is_floating_point()
            return torch.arange(length)[None] if is_index else torch.zeros(1, 1, 1)

        options = {name: of_positions(value) for name, value in self.options.items()}
        cos, sin = whole.get_submodule(self.path)(*map(of_positions, self.args), **options)
        return cos[0], sin[0]


@dataclass(frozen=True, slots=True)
class Trace:
    """What a step showed.

    Attributes:
        calls: Of attention, in order.
        prefix: Attribute that holds the decoder.
        angles: What made the angles that attention modules are passed, by their paths.
    """

    calls: list[AttentionCall]
    prefix: str
    angles: Mapping[str, AnglesCall]


def trace_class(found: Any, config: Any) -> Trace:
    """Return what a step of the class ``found`` shows.

    Raises:
        UnsupportedError: It calls attention in a way that pages cannot serve, or not in every
            layer.
    """
    with torch.device("meta"):
        model = found._from_config(config, attn_implementation=NAME).eval()
    for path, module in list(model.named_modules()):
        if is_experts(module):
            model.set_submodule(path, UntouchedExperts())
    prefix = _prefix_of(model)
    decoder, watch = getattr(model, prefix), _Watch()
    watch.follow(model)
    calls = find_calls(model, lambda ids, positions: hidden_states(decoder, ids, positions))
    _check_layers(found, config, calls)
    _check_head(model, prefix, config)
    return Trace(calls, prefix, watch.angles())


def hidden_states(decoder: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Return what a decoder makes of a step. [1, T, D]"""
    return decoder(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state


@dataclass(slots=True)
class _Watch:
    """Sees which modules make pairs of tensors, and which pair each attention module is passed."""

    made: list[tuple[Tensor, AnglesCall]] = field(default_factory=list[tuple[Tensor, AnglesCall]])
    passed: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def follow(self, model: nn.Module) -> None:
        """See the next step of ``model``."""
        for path, module in model.named_modules():
            if next(module.parameters(), None) is None:
                module.register_forward_hook(self._maker(path), with_kwargs=True)
            module.register_forward_pre_hook(self._taker(path), with_kwargs=True)

    def _maker(self, path: str) -> Any:
        def see(module: Any, args: Any, options: Any, output: Any) -> None:
            if _is_pair(output):
                self.made.append((output[0], AnglesCall(path, args, options)))

        return see

    def _taker(self, path: str) -> Any:
        def see(module: Any, args: Any, options: Any) -> None:
            if _is_pair(options.get(ANGLES)):
                self.passed[path] = options[ANGLES][0]

        return see

    def angles(self) -> dict[str, AnglesCall]:
        """Return which call made what each module was passed."""
        return {
            path: call
            for path, cos in self.passed.items()
            for made, call in self.made
            if made is cos
        }


def _is_pair(value: Any) -> bool:
    is_tuple = isinstance(value, tuple) and len(value) == 2
    return is_tuple and all(isinstance(part, Tensor) for part in value)


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


def _check_layers(found: Any, config: Any, calls: list[AttentionCall]) -> None:
    """Refuse a class some of whose layers keep what the cache does not.

    Raises:
        UnsupportedError: They do not all call attention, or do not say what they see.
    """
    num_layers = config.num_hidden_layers
    if not calls or len(calls) % num_layers:
        raise UnsupportedError(
            f"transformers' {found.__name__} calls attention {len(calls)} times in"
            f" {num_layers} layers: the others keep something that the cache does not.",
            remedy=REMEDY,
        )
    kinds = getattr(config, "layer_types", None) or ()
    windowed = sum(kind == "sliding_attention" for kind in kinds)
    if windowed != sum(call.window is not None for call in calls) and kinds:
        raise UnsupportedError(
            f"transformers' {found.__name__} has {windowed} layers of sliding_attention in"
            " layer_types, and does not say so when it calls attention.",
            remedy=REMEDY,
        )


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
