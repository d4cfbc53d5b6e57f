"""What the Qwen3-VL and Qwen3.5 families make of images, and how their decoders take it.

Features of images stand in the place of embeddings; features of earlier encoder layers, where a
model has them, are added to what the decoder's first layers make (deepstack).

Shapes: T tokens, D hidden size; N patches, M = N / merge² tokens of images. Source: Bai et al.
2025, "Qwen3-VL Technical Report"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.graph.axes import AxialRotary, interleaved_axes
from headstock.graph.build import Model
from headstock.graph.config import ModelConfig, read_config, require, section
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm
from headstock.graph.rotary import rotary_parameters
from headstock.graph.vision import (
    EncoderLayer,
    EncoderRotary,
    Grid,
    Moment,
    PatchEmbedding,
    PlainMLP,
    PositionTable,
    Send,
    View,
    encoder_context,
    place_patches,
)
from headstock.ops.activation_kinds import BY_CONFIG_NAME, GELU
from headstock.ops.attention import StepBatch
from headstock.ops.features import add_features
from headstock.ops.media import add_placed, place_features
from headstock.ops.outputs import join_features
from headstock.ops.vision import pixel_values

EPS = 1e-6
NUM_AXES = 3
MAX_SIDE = 4096
"""Most patches of an image in height or width."""


class QwenVisionConfig(ModelConfig, frozen=True, kw_only=True):
    depth: int = 27
    hidden_size: int = 1152
    hidden_act: str = "gelu_pytorch_tanh"
    intermediate_size: int = 4304
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    out_hidden_size: int = 3584
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = ()
    rope_parameters: dict[str, Any] | None = None


class PatchMerger(Module):
    """Joins the patches of a square and projects them to the decoder's size."""

    def __init__(self, ctx: Context, c: QwenVisionConfig, *, joins_first: bool) -> None:
        self._joined = c.hidden_size * c.spatial_merge_size**2
        self._joins_first = joins_first
        size = self._joined if joins_first else c.hidden_size
        self.norm = LayerNorm(ctx, size, leaf="norm", eps=EPS)
        sizes = (self._joined, self._joined, c.out_hidden_size)
        self.mlp = PlainMLP(ctx, sizes, GELU, ("linear_fc1", "linear_fc2"))

    def children(self) -> Any:
        """Yield the parts; those of the feed-forward layer have no name of their own."""
        yield "norm", self.norm
        yield from self.mlp.children()

    def forward(self, x_ND: Tensor) -> Tensor:
        if self._joins_first:
            return self.mlp(self.norm(x_ND.view(-1, self._joined), None)[0])
        return self.mlp(self.norm(x_ND, None)[0].view(-1, self._joined))


class LayerParts(Protocol):
    """What an encoder's layers are made of, as its configuration says."""

    def make_norm(self, ctx: Context, leaf: str) -> Any:
        """Return one of a layer's norms."""
        ...

    def make_attention(self, ctx: Context) -> Any:
        """Return a layer's attention."""
        ...

    def make_mlp(self, ctx: Context) -> Any:
        """Return a layer's feed-forward layer."""
        ...


class VisionLayer(Module):
    """Attention, then the feed-forward layer, each on the normalised residual stream."""

    def __init__(self, ctx: Context, c: LayerParts) -> None:
        self.norm = c.make_norm(ctx, "norm1")
        self.attn = c.make_attention(ctx)
        self.mlp_norm = c.make_norm(ctx, "norm2")
        self.mlp = c.make_mlp(ctx)

    def forward(
        self, x_ND: Tensor, sum_ND: Tensor | None, angles_NE: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return the layer's output and the residual stream it is to be added to. [N, D] each"""
        x_ND, total_ND = self.norm(x_ND, sum_ND)
        x_ND = self.attn(x_ND, angles_NE, lengths)
        x_ND, total_ND = self.mlp_norm(x_ND, total_ND)
        return self.mlp(x_ND), total_ND


class VisionEncoder(Module):
    """Patches to features of tokens: those of the last layer, then those of each deepstack layer.

    Attributes:
        merge: Patches in height and width that become one token.
    """

    def __init__(self, ctx: Context, c: QwenVisionConfig) -> None:
        kernel = (c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
        self.patch_embed = Named(PatchEmbedding(ctx, kernel, c.hidden_size, leaf="proj"))
        self.positions = PositionTable(
            ctx, c.num_position_embeddings, c.hidden_size, leaf="pos_embed"
        )
        activation = BY_CONFIG_NAME[c.hidden_act]
        self.blocks = [
            EncoderLayer(ctx, c.hidden_size, c.num_heads, c.intermediate_size, activation, eps=EPS)
            for _ in range(c.depth)
        ]
        self.merger = PatchMerger(ctx, c, joins_first=False)
        self.deepstack_merger_list = [
            PatchMerger(ctx, c, joins_first=True) for _ in c.deepstack_visual_indexes
        ]
        self.merge = c.spatial_merge_size
        self.patch_bytes = int(np.prod(kernel))
        self._deep = {layer: place for place, layer in enumerate(c.deepstack_visual_indexes)}
        theta = float((c.rope_parameters or {}).get("rope_theta", 10000.0))
        self._rotary = EncoderRotary(ctx, c.hidden_size // c.num_heads, theta, MAX_SIDE)
        self._dtype = ctx.dtype
        self._pixels = ctx.ops.resolve(pixel_values, ctx.spec())
        self._join = ctx.ops.resolve(join_features, ctx.spec())
        self._add = ctx.ops.resolve(add_features, ctx.spec(size=c.hidden_size))

    def forward(
        self,
        pixels_NP: Tensor,
        grids: Sequence[Grid],
        scale_C: Tensor,
        shift_C: Tensor,
        send: Send,
    ) -> Tensor:
        """Return the features of tokens; see :class:`headstock.graph.vision.MediaModel`. [M, F]"""
        values_NP = self._pixels(pixels_NP, scale_C, shift_C, dtype=self._dtype)
        x_ND = self.patch_embed(values_NP)
        places_2N, rows_N4, weights_N4 = self._layout(grids, send)
        x_ND = self.positions(x_ND, rows_N4, weights_N4)
        angles_NE = self._rotary(places_2N)
        lengths = [h * w for t, h, w in grids for _ in range(t)]
        found: dict[int, Tensor] = {}
        sum_ND = None
        for number, block in enumerate(self.blocks):
            x_ND, sum_ND = block(x_ND, sum_ND, angles_NE, lengths)
            if number in self._deep:
                x_ND, sum_ND = self._add(x_ND, sum_ND), None
                place = self._deep[number]
                found[place] = self.deepstack_merger_list[place](x_ND)
        x_ND = x_ND if sum_ND is None else self._add(x_ND, sum_ND)
        features_MF = self.merger(x_ND)
        for place in sorted(found):
            features_MF = self._join(features_MF, found[place])
        return features_MF

    def _layout(self, grids: Sequence[Grid], send: Send) -> tuple[Tensor, Tensor, Tensor]:
        """Return where patches are, and which places of the position table they are between."""
        places = [place_patches(grid, self.merge) for grid in grids]
        taps = [
            resample(place, grid, self.positions.side)
            for place, grid in zip(places, grids, strict=True)
        ]
        return (
            send(np.concatenate(places, axis=1).astype(np.int32)),
            send(np.concatenate([rows for rows, _ in taps])),
            send(np.concatenate([weights for _, weights in taps]).astype(np.float32)),
        )


class Named(Module):
    """A layer below a name of its own."""

    def __init__(self, layer: Module) -> None:
        self.layer = layer
        self.forward = layer.forward


def resample(places_2N: np.ndarray, grid: Grid, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of a square table around each patch, and their weights. [N, 4] each

    The corners of both grids coincide.
    """
    taps, weights = [], []
    for place_N, extent in zip(places_2N, grid[1:], strict=True):
        exact_N = place_N.astype(np.float32) * np.float32(side - 1)
        exact_N = exact_N / np.float32(max(extent - 1, 1))
        low_N = np.floor(exact_N)
        part_N = exact_N - low_N
        below_N = low_N.astype(np.int64)
        taps.append((below_N, np.minimum(below_N + 1, side - 1)))
        weights.append((1 - part_N, part_N))
    rows = [high * side + wide for high in taps[0] for wide in taps[1]]
    shares = [high * wide for high in weights[0] for wide in weights[1]]
    return np.stack(rows, axis=1), np.stack(shares, axis=1)


class TextDecoder(Protocol):
    """What a family's decoder of text is made of."""

    embed: Embedding
    layers: list[Any]
    norm: Any


class VisualDecoder(Module):
    """A decoder of text; tokens of images have features instead of embeddings."""

    def __init__(
        self, ctx: Context, decoder: TextDecoder, rotary: AxialRotary, size: int, num_deep: int
    ) -> None:
        self.embed, self.layers, self.norm = decoder.embed, decoder.layers, decoder.norm
        self._rotary, self._num_deep, self._size = rotary, num_deep, size
        spec = ctx.spec(size=size)
        self._place = ctx.ops.resolve(place_features, spec)
        self._add = ctx.ops.resolve(add_placed, spec)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        self._rotary(batch)
        media = batch.media
        x_TD, sum_TD = self.embed(ids_T), None
        if media is not None:
            x_TD = self._place(x_TD, media.features_MF, media.rows_T)
        for number, layer in enumerate(self.layers):
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
            if media is not None and number < self._num_deep:
                offset = (number + 1) * self._size
                x_TD = self._add(x_TD, media.features_MF, media.rows_T, offset=offset)
        return self.norm(x_TD, sum_TD)[0]


class VisualModel(Module):
    def __init__(self, encoder: Module, decoder: VisualDecoder) -> None:
        self.visual = encoder
        self.language_model = decoder

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        return self.language_model(ids_T, batch)


class Encoder(Protocol):
    """What a family's encoder of images is made of.

    Attributes:
        merge: Patches in height and width that become one token.
        patch_bytes: Of a patch.
    """

    merge: int
    patch_bytes: int

    def forward(
        self,
        pixels_NP: Tensor,
        grids: Sequence[Grid],
        scale_C: Tensor,
        shift_C: Tensor,
        send: Send,
    ) -> Tensor:
        """Return the features of tokens; see :class:`headstock.graph.vision.MediaModel`. [M, F]"""
        ...


class QwenMedia:
    """How the runner feeds images to the model; see :class:`headstock.graph.vision.MediaModel`."""

    num_axes = NUM_AXES
    max_side = MAX_SIDE
    sees_spans = False
    row_tokens = 0
    tile_side = 0
    pooled_frames = 1

    def __init__(self, encoder: Encoder, feature_size: int) -> None:
        self._encoder = encoder
        self.feature_size = feature_size
        self.patches_per_token = encoder.merge**2
        self.patch_bytes = encoder.patch_bytes

    def encode(
        self,
        pixels_NP: Tensor,
        grids: Sequence[Grid],
        scale_C: Tensor,
        shift_C: Tensor,
        send: Send,
        views: Sequence[View | None] = (),
    ) -> Tensor:
        assert not any(views), "images have no views where there are no tiles"
        return self._encoder.forward(pixels_NP, grids, scale_C, shift_C, send)

    def shifts(
        self, begins: Sequence[int], grids: Sequence[Grid], moments: Sequence[Moment] = ()
    ) -> tuple[np.ndarray, int]:
        merge = self._encoder.merge
        shapes = [(t, h // merge, w // merge) for t, h, w in grids]
        ends = [begin + int(np.prod(s)) for begin, s in zip(begins, shapes, strict=True)]
        shifts_AT = np.zeros((NUM_AXES, ends[-1] if ends else 0), np.int32)
        shift = last = first = following = 0
        for number, (begin, end, shape) in enumerate(zip(begins, ends, shapes, strict=True)):
            time, follows = moments[number] if moments else (0, False)
            if not follows:
                first = following = begin + shift
            shifts_AT[:, last:begin] = shift
            axes = np.meshgrid(*(np.arange(extent) for extent in shape), indexing="ij")
            for axis, along in enumerate(axes):
                shifts_AT[axis, begin:end] = first + along.reshape(-1) - np.arange(begin, end)
            shifts_AT[0, begin:end] += time
            # What follows is one further than the furthest on any axis.
            following = max(following, first + max(time + shape[0], *shape[1:]))
            shift, last = following - end, end
        return shifts_AT, shift


class TextConfig(Protocol):
    """What all families' configurations of text have."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def tie_word_embeddings(self) -> bool: ...


class VisualForConditionalGeneration(Model):
    """A decoder with an image encoder, and an output layer, perhaps tied to the embedding."""

    vision_type: type[QwenVisionConfig]
    default_sections: Sequence[int]
    is_interleaved = False

    def read_text(self, text: dict[str, Any]) -> TextConfig:
        """Return the configuration of the decoder."""
        raise NotImplementedError

    def rotary_dim(self, text: dict[str, Any], c: Any) -> int:
        """Return the features of a head that are rotated."""
        raise NotImplementedError

    def make_decoder(self, ctx: Context, c: Any, rotary: AxialRotary) -> TextDecoder:
        """Return the decoder."""
        raise NotImplementedError

    def axes(self, sections: Sequence[int]) -> list[int]:
        """Return the axis of each frequency."""
        return interleaved_axes(sections)

    def read_vision(self, vision: dict[str, Any]) -> QwenVisionConfig:
        """Return the configuration of the encoder."""
        c = read_config(self.vision_type, vision)
        require({"hidden_act": c.hidden_act}, hidden_act=BY_CONFIG_NAME)
        return c

    def make_encoder(self, ctx: Context, c: Any) -> Module:
        """Return the encoder."""
        return VisionEncoder(ctx, c)

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = _text_of(config)
        require(text, hidden_act=("silu", "swish"))
        c = self.read_text(text)
        vision = self.read_vision(dict(config.get("vision_config") or {}))
        _check(c, vision)
        sections = rotary_parameters(text).get("mrope_section") or self.default_sections
        axes = self.axes(sections)
        size = self.rotary_dim(text, c)
        rotary = AxialRotary(ctx, size, text, axes, is_interleaved=self.is_interleaved)
        num_deep = len(vision.deepstack_visual_indexes)
        encoder: Any = self.make_encoder(encoder_context(ctx), vision)
        decoder = self.make_decoder(ctx, c, rotary)
        visual = VisualDecoder(ctx, decoder, rotary, c.hidden_size, num_deep)
        self.model = VisualModel(encoder, visual)
        tied = visual.embed if c.tie_word_embeddings else None
        self.lm_head = LMHead(ctx, c.vocab_size, c.hidden_size, leaf="lm_head", tied=tied)
        self.media = QwenMedia(encoder, (1 + num_deep) * c.hidden_size)


def _text_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the decoder, which old files have at the top.

    Positions on several axes were a type of scaling there, which scales nothing.
    """
    text = section(config, "text_config") if config.get("text_config") else dict(config)
    if "tie_word_embeddings" in config:
        text["tie_word_embeddings"] = config["tie_word_embeddings"]
    for key in ("rope_scaling", "rope_parameters"):
        rope = dict(text.get(key) or {})
        if "mrope" in (rope.get("type"), rope.get("rope_type")):
            text[key] = {**rope, "type": "default", "rope_type": "default"}
    return text


def _check(text: TextConfig, vision: QwenVisionConfig) -> None:
    """Refuse configurations whose parts do not fit each other.

    Raises:
        UnsupportedError: Naming the key.
    """
    if vision.out_hidden_size != text.hidden_size:
        raise UnsupportedError(
            f"vision_config has out_hidden_size {vision.out_hidden_size}; the text's hidden_size is"
            f" {text.hidden_size}.",
            remedy="Compare config.json with the model's original.",
        )
    deep = vision.deepstack_visual_indexes
    if len(deep) >= text.num_hidden_layers or any(not 0 <= n < vision.depth for n in deep):
        raise UnsupportedError(
            f"vision_config has deepstack_visual_indexes {deep}, with {vision.depth} layers of the"
            f" encoder and {text.num_hidden_layers} of the decoder.",
            remedy="Compare config.json with the model's original.",
        )
