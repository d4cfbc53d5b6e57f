"""Decoders of transformers that only run one known layer after another, by trying them.

Then nothing of transformers' is called in a step, sums over the residual stream are joined to the
norms behind them, and the last layer computes what is wanted alone.

Shapes: T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstock.graph.context import Context
from headstock.graph.last import LastOfRows
from headstock.ops.attention import StepBatch
from headstock_models.fallback.known_attention import Attended
from headstock_models.fallback.known_parts import Fed, Normed
from headstock_models.fallback.parts import GivenStates, Lookup, Product
from headstock_models.fallback.probe import SIZE, Draw, DrawnLinear, Stub, attempt, is_same, shell
from headstock_models.fallback.trace import hidden_states

TRIED = 5
"""Tokens of a probe."""


@dataclass(frozen=True, slots=True)
class KnownLayer:
    """Attention and then a feed-forward layer, each on the normalised residual stream.

    Attributes:
        norm: In front of attention.
        attend: Attention.
        feed_norm: In front of the feed-forward layer.
        feed: That layer, of ours or of transformers.
    """

    norm: Normed
    attend: Attended
    feed_norm: Normed
    feed: nn.Module


class Chain:
    """A decoder that consists of known layers.

    Args:
        ctx: What to build with.
        embed: In front of the layers.
        layers: In order.
        norm: Behind them.
    """

    def __init__(
        self, ctx: Context, embed: nn.Module, layers: Sequence[KnownLayer], norm: Normed
    ) -> None:
        self._embed, self._norm = embed, norm.layer
        self._layers = [(each, _feed(each.feed)) for each in layers]
        self._keeps = [LastOfRows(ctx, is_last=each is layers[-1]) for each in layers]

    def __call__(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        """Return the hidden state of every token, or of those that are wanted. [T, D]"""
        x_TD, sum_TD = self._embed(ids_T), None
        for (layer, feed), keep in zip(self._layers, self._keeps, strict=True):
            x_TD, total_TD = layer.norm.layer(x_TD, sum_TD)
            x_TD = layer.attend.layer(x_TD, batch, keep)
            x_TD, sum_TD = layer.feed_norm.layer(x_TD, keep(total_TD, batch))
            x_TD = feed(x_TD)
        return self._norm(x_TD, sum_TD)[0]


def _feed(module: nn.Module) -> Any:
    """Return what computes a feed-forward layer. [T, D] to [T, D]"""
    if isinstance(module, Fed):
        return module.layer
    return lambda x_TD: module(x_TD[None])[0]


def find_chain(ctx: Context, decoder: nn.Module) -> Chain | None:
    """Return the decoder as known layers, whose parts are in place; None: it is something else."""
    children = dict(decoder.named_children())
    embeds = [n for n, child in children.items() if isinstance(child, Lookup)]
    norms = [n for n, child in children.items() if isinstance(child, Normed)]
    stacks = [n for n, child in children.items() if isinstance(child, nn.ModuleList)]
    others = [c for n, c in children.items() if n not in (*embeds, *norms, *stacks)]
    is_alike = [len(names) for names in (embeds, norms, stacks)] == [1, 1, 1]
    if not is_alike or any(next(c.parameters(), None) is not None for c in others):
        return None
    (embed,), (norm,), (stack,) = embeds, norms, stacks
    given: Any = children[stack]
    layers = [find_layer(layer) for layer in given]
    last = children[norm]
    known = [layer for layer in layers if layer is not None]
    if len(known) < len(layers) or not isinstance(last, Normed):
        return None
    if not attempt(lambda: _only_runs_layers(decoder, embed, stack, norm)):
        return None
    return Chain(ctx, children[embed], known, last)


def _only_runs_layers(decoder: nn.Module, embed: str, stack: str, norm: str) -> bool:
    """Whether a decoder is the layers between an embedding and a norm, and nothing else."""
    draw = Draw()
    table_VD, end = draw(TRIED, SIZE), DrawnLinear(draw, SIZE, SIZE)
    layers: Any = decoder.get_submodule(stack)
    steps = [DrawnLinear(draw, SIZE, SIZE, has_bias=True) for _ in layers]
    parts = {
        embed: Stub(decoder.get_submodule(embed), lambda ids: table_VD[ids]),
        stack: nn.ModuleList(
            Stub(layer, lambda x, step=step: step(x).tanh())
            for layer, step in zip(layers, steps, strict=True)
        ),
        norm: Stub(decoder.get_submodule(norm), end),
    }
    ids = torch.arange(TRIED)
    got = hidden_states(shell(decoder, parts), ids[None], ids[None])
    x_TD = table_VD[ids]
    for step in steps:
        x_TD = step(x_TD).tanh()
    return is_same(got, end(x_TD)[None])


def find_layer(layer: nn.Module) -> KnownLayer | None:
    """Return a decoder's layer as its parts, which are in place; None: it is something else."""
    children = {n: c for n, c in layer.named_children() if not isinstance(c, nn.Dropout)}
    norms = [n for n, child in children.items() if isinstance(child, Normed)]
    attends = [n for n, child in children.items() if isinstance(child, Attended)]
    feeds = [n for n in children if n not in (*norms, *attends)]
    if [len(names) for names in (norms, attends, feeds)] != [2, 1, 1]:
        return None
    for first, second in (norms, norms[::-1]):
        names = (first, attends[0], second, feeds[0])
        if attempt(lambda names=names: _is_two_steps(layer, *names)):
            norm, attend, feed_norm = (children[name] for name in names[:3])
            assert isinstance(norm, Normed), "its kind is what it was chosen by"
            assert isinstance(feed_norm, Normed), "its kind is what it was chosen by"
            assert isinstance(attend, Attended), "its kind is what it was chosen by"
            return KnownLayer(norm, attend, feed_norm, children[feeds[0]])
    return None


def _is_two_steps(layer: nn.Module, norm: str, attend: str, feed_norm: str, feed: str) -> bool:
    """Whether a layer adds attention of the normalised stream to it, and then likewise the rest."""
    draw = Draw()
    first, second, third, fourth = (DrawnLinear(draw, SIZE, SIZE, has_bias=True) for _ in range(4))
    attended: Any = layer.get_submodule(attend)
    parts = {
        norm: Stub(layer.get_submodule(norm), first),
        attend: Stub(attended, lambda x: attended.results(second(x).tanh())),
        feed_norm: Stub(layer.get_submodule(feed_norm), third),
        feed: Stub(layer.get_submodule(feed), lambda x: fourth(x).tanh()),
    }
    x = draw(1, TRIED, SIZE)
    made = shell(layer, parts)(hidden_states=x, attention_mask=None, position_embeddings=None)
    got = made[0] if isinstance(made, tuple) else made
    between = x + second(first(x)).tanh()
    return is_same(got, between + fourth(third(between)).tanh())


def gives_plain_logits(whole: nn.Module, prefix: str, head: str) -> bool:
    """Whether logits are the output layer's product of hidden states, and nothing else.

    Args:
        whole: The model.
        prefix: Attribute that holds its decoder.
        head: Attribute that holds its output layer.
    """
    draw = Draw()
    product, x = DrawnLinear(draw, SIZE, SIZE + 1), draw(1, TRIED, SIZE) * 100
    parts = {prefix: GivenStates(), head: Stub(whole.get_submodule(head), product)}
    made = attempt(lambda: shell(whole, parts)(inputs_embeds=x, use_cache=False).logits)
    return isinstance(whole.get_submodule(head), Product) and is_same(made, product(x))
