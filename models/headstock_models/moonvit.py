"""MoonViT 3D, the encoder of Kimi K2.5: images in their own size, and a few frames as one.

Frames of one item see each other; behind the last layer the mean of them is taken.

Shapes: N patches, D hidden size, L places of the position table, M = N / merge² tokens.
Source: Kimi team 2026, "Kimi K2.5"; names as in Hugging Face transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.config import ModelConfig, read_config, require
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Leaf, Module
from headstock.graph.norm import LayerNorm
from headstock.graph.source import Source
from headstock.graph.vision import (
    EncoderLayer,
    EncoderNames,
    EncoderRotary,
    Grid,
    PatchEmbedding,
    PositionTable,
    Send,
    place_patches,
)
from headstock.ops.activation import activate
from headstock.ops.activation_kinds import BY_CONFIG_NAME, GELU
from headstock.ops.features import add_features
from headstock.ops.vision import mix_patches, pixel_values
from headstock.quantization.plan import Role
from headstock_models.glm4v import resample_cubic
from headstock_models.stored_rows import take_rows

EPS = 1e-5
CHANNELS = 3
MAX_SIDE = 512
"""Most patches of an image in height or width."""
TIME_THETA = 10000.0
"""Base of the wavelengths of the waves that say which frame a patch is of."""
NAMES = EncoderNames(qkv=("q_proj", "k_proj", "v_proj"), mlp=("fc1", "fc2"))
HUB_KEYS = {
    "hidden_size": "vt_hidden_size",
    "intermediate_size": "vt_intermediate_size",
    "num_hidden_layers": "vt_num_hidden_layers",
    "num_attention_heads": "vt_num_attention_heads",
    "pos_emb_height": "init_pos_emb_height",
    "pos_emb_width": "init_pos_emb_width",
    "pos_emb_time": "init_pos_emb_time",
}
"""What the hub's configurations call it, by what transformers does."""
BLOCK = r"^vision_tower\.encoder\.blocks\.(\d+)\."
HUB_NAMES: Sequence[tuple[str, str]] = (
    (BLOCK + r"norm1\.", r"model.vision_tower.layers.\1.norm2."),
    (BLOCK + r"norm0\.", r"model.vision_tower.layers.\1.norm1."),
    (BLOCK + r"mlp\.fc1\.", r"model.vision_tower.layers.\1.mlp.fc2."),
    (BLOCK + r"mlp\.fc0\.", r"model.vision_tower.layers.\1.mlp.fc1."),
    (BLOCK + r"wo\.", r"model.vision_tower.layers.\1.attn.proj."),
    (BLOCK, r"model.vision_tower.layers.\1.attn."),
    (r"^vision_tower\.(encoder\.)?", "model.vision_tower."),
    (r"^mm_projector\.proj\.0\.", "model.mm_projector.in_proj."),
    (r"^mm_projector\.proj\.2\.", "model.mm_projector.out_proj."),
    (r"^mm_projector\.", "model.mm_projector."),
    (r"pos_emb\.position_embeddings$", "pos_emb.weight"),
)
"""What checkpoints call tensors of the encoder, to what they are called here."""


class MoonVitConfig(ModelConfig, frozen=True, kw_only=True):
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    patch_size: int = 14
    pos_emb_height: int = 64
    pos_emb_width: int = 64
    pos_emb_time: int = 4
    hidden_act: str = "gelu_pytorch_tanh"
    merge_kernel_size: tuple[int, int] = (2, 2)
    rope_parameters: dict[str, Any] | None = None

    @property
    def patch_bytes(self) -> int:
        """Bytes of a patch."""
        return CHANNELS * self.patch_size**2

    @property
    def merge(self) -> int:
        """Patches in height and width that become one token."""
        return self.merge_kernel_size[0]


def read_moonvit(vision: Mapping[str, Any]) -> MoonVitConfig:
    """Return the encoder's configuration, by the hub's keys or those of transformers.

    Raises:
        UnsupportedError: It asks for what is not computed.
    """
    require(vision, merge_type=("sd2_tpool",), pos_emb_type=("divided_fixed",))
    require(vision, video_attn_type=("spatial_temporal",), mm_projector_type=("patchmerger",))
    named = {key: vision[old] for key, old in HUB_KEYS.items() if old in vision}
    c = read_config(MoonVitConfig, {**vision, **named})
    require({"hidden_act": c.hidden_act}, hidden_act=BY_CONFIG_NAME)
    require({"pos_emb_width": c.pos_emb_width}, pos_emb_width=(c.pos_emb_height,))
    require({"merge_kernel_size": c.merge_kernel_size}, merge_kernel_size=((c.merge, c.merge),))
    require(vision, mm_hidden_size=(c.hidden_size,))
    return c


class PlaceTable(PositionTable):
    """Learned positions of a square grid; behind them a row for each frame but the only one.

    Args:
        ctx: What to build with.
        c: Sizes.
    """

    def __init__(self, ctx: Context, c: MoonVitConfig) -> None:
        super().__init__(ctx, c.pos_emb_height**2, c.hidden_size, leaf="pos_emb")
        waves_TD = frame_waves(c.pos_emb_time, c.hidden_size)
        self.num_places, self.num_frames = c.pos_emb_height**2, c.pos_emb_time
        self.values_LD = torch.cat((self.values_LD, waves_TD.to(self.values_LD)))

    def leaves(self) -> Sequence[Leaf]:
        """Return the table of places."""
        shape = (self.side, self.side, self.values_LD.shape[1])
        return [Leaf(f"{self._leaf}.weight", shape, Role.BIAS)]

    def load(self, name: str, source: Source) -> None:
        """Copy the table of places."""
        table = source.read(0, source.shape[0])["weight"]
        self.values_LD[: self.num_places].copy_(table.flatten(0, 1))


def frame_waves(count: int, size: int) -> Tensor:
    """Return what is added to the patches of each of several frames. float32. [count, size]

    Source:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.5; sines first.
    """
    steps = torch.arange(0, size, 2, dtype=torch.float32) / size
    angles = torch.arange(count, dtype=torch.float32)[:, None] / TIME_THETA**steps
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class MoonVitPatches(Module):
    """Patches to features with positions."""

    def __init__(self, ctx: Context, c: MoonVitConfig) -> None:
        kernel = (CHANNELS, c.patch_size, c.patch_size)
        self.patches = PatchEmbedding(ctx, kernel, c.hidden_size, leaf="proj")
        self.positions = PlaceTable(ctx, c)

    def forward(self, values_NP: Tensor, rows_NB: Tensor, weights_NB: Tensor) -> Tensor:
        """Return features of patches. [N, D]"""
        return self.positions(self.patches(values_NP), rows_NB, weights_NB)


class MoonVit(Module):
    """Patches to features of those of one frame each, squares of them together."""

    def __init__(self, ctx: Context, c: MoonVitConfig) -> None:
        size = c.hidden_size
        self.patch_embed = MoonVitPatches(ctx, c)
        activation = BY_CONFIG_NAME[c.hidden_act]
        sizes = (size, c.num_attention_heads, c.intermediate_size)
        self.layers = [
            EncoderLayer(ctx, *sizes, activation, eps=EPS, names=NAMES)
            for _ in range(c.num_hidden_layers)
        ]
        self.norm = LayerNorm(ctx, size, leaf="final_layernorm", eps=EPS)
        theta = float((c.rope_parameters or {}).get("rope_theta", 10000.0))
        self._rotary = EncoderRotary(ctx, size // c.num_attention_heads, theta, MAX_SIDE)
        self._merge, self._dtype = c.merge, ctx.dtype
        self._pixels = ctx.ops.resolve(pixel_values, ctx.spec())
        self._mix = ctx.ops.resolve(mix_patches, ctx.spec(size=size))
        self._add = ctx.ops.resolve(add_features, ctx.spec(size=size))

    def forward(
        self,
        pixels_NP: Tensor,
        grids: Sequence[Grid],
        scale_C: Tensor,
        shift_C: Tensor,
        send: Send,
    ) -> Tensor:
        """Return the features of patches, the mean of an item's frames.

        See :class:`headstock.graph.vision.MediaModel`.
        """
        values_NP = self._pixels(pixels_NP, scale_C, shift_C, dtype=self._dtype)
        places = [place_patches(grid, self._merge) for grid in grids]
        table = self.patch_embed.positions
        rows_NB, weights_NB = positions_of(places, grids, table.side, table.num_places)
        x_ND = self.patch_embed(values_NP, send(rows_NB), send(weights_NB))
        angles_NE = self._rotary(send(np.concatenate(places, axis=1).astype(np.int32)))
        lengths, sum_ND = [int(np.prod(grid)) for grid in grids], None
        for layer in self.layers:
            x_ND, sum_ND = layer(x_ND, sum_ND, angles_NE, lengths)
        x_ND = self.norm(x_ND, sum_ND)[0]
        if all(frames == 1 for frames, _, _ in grids):
            return x_ND
        rows_MB, shares_MB = frames_of(grids)
        return self._mix(x_ND, send(rows_MB), send(shares_MB))


def positions_of(
    places: Sequence[np.ndarray], grids: Sequence[Grid], side: int, num_places: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the table that each patch's position is a sum of, and their weights.

    Those of the place are resampled; that of the frame counts where there are several.
    """
    taps = [resample_cubic(p, grid, side) for p, grid in zip(places, grids, strict=True)]
    rows_NB = np.concatenate([rows for rows, _ in taps])
    weights_NB = np.concatenate([weights for _, weights in taps])
    if all(frames == 1 for frames, _, _ in grids):
        return rows_NB, weights_NB
    frame_N = np.concatenate([np.repeat(np.arange(t), h * w) for t, h, w in grids])
    counts_N = np.concatenate([np.full(t * h * w, float(t > 1)) for t, h, w in grids])
    rows_NB = np.concatenate((rows_NB, num_places + frame_N[:, None]), axis=1)
    return rows_NB, np.concatenate((weights_NB, counts_N[:, None]), axis=1).astype(np.float32)


def frames_of(grids: Sequence[Grid]) -> tuple[np.ndarray, np.ndarray]:
    """Return the patches of all frames that become one, and their shares. [M, frames] each"""
    most = max(frames for frames, _, _ in grids)
    rows: list[np.ndarray] = []
    shares: list[np.ndarray] = []
    begin = 0
    for frames, height, width in grids:
        count = height * width
        frame = np.minimum(np.arange(most), frames - 1)
        rows.append(begin + np.arange(count)[:, None] + frame * count)
        share = np.where(np.arange(most) < frames, 1 / frames, 0)
        shares.append(np.tile(share, (count, 1)))
        begin += frames * count
    return np.concatenate(rows), np.concatenate(shares).astype(np.float32)


class MoonVitProjector(Module):
    """Patches normalised, joined and projected to the decoder's size."""

    def __init__(self, ctx: Context, c: MoonVitConfig, size: int, eps: float) -> None:
        self._joined = c.hidden_size * c.merge**2
        self.norm = LayerNorm(ctx, c.hidden_size, leaf="pre_norm", eps=eps)
        self.up = Linear(ctx, self._joined, {"in_proj": self._joined}, has_bias=True)
        self.down = Linear(ctx, self._joined, {"out_proj": size}, has_bias=True)
        spec = ctx.spec(features=GELU.features, size=self._joined)
        self._activate = ctx.ops.resolve(activate, spec)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return features of tokens. [M, F]"""
        x_MB = self.norm(x_ND, None)[0].view(-1, self._joined)
        return self.down(self._activate(self.up(x_MB), activation=GELU))


def moonvit_names(index: Mapping[str, StoredTensor], num_heads: int) -> Mapping[str, StoredTensor]:
    """Return a checkpoint's tensors by the names here, rows of heads as they are rotated here.

    The hub has queries, keys and values in one matrix, and rotates neighbouring rows; its angles
    are the width's and the height's by turns. Here halves are rotated, by the height's angles
    first.
    """
    found: dict[str, StoredTensor] = {}
    for old, tensor in index.items():
        name = old
        for pattern, new in HUB_NAMES:
            name = re.sub(pattern, new, name)
        head, _, kind = name.rpartition(".")
        if head.endswith(".attn.wqkv"):
            size = tensor.shape[0] // 3
            for number, part in enumerate(("q_proj", "k_proj", "v_proj")):
                order = _order(size, num_heads, is_woven=True) if number < 2 else np.arange(size)
                new = f"{head.removesuffix('wqkv')}{part}.{kind}"
                found[new] = take_rows(tensor, new, number * size + order)
        elif re.search(r"vision_tower\..*\.attn\.[qk]_proj$", head):
            order = _order(tensor.shape[0], num_heads, is_woven=False)
            found[name] = take_rows(tensor, name, order)
        else:
            found[name] = tensor
    return found


def _order(size: int, num_heads: int, *, is_woven: bool) -> np.ndarray:
    """Return the row of a checkpoint's queries that each row here is.

    Args:
        size: Rows.
        num_heads: Heads.
        is_woven: Whether the checkpoint rotates neighbours, and not halves.
    """
    half = size // num_heads // 2
    angles = np.concatenate((np.arange(1, half, 2), np.arange(0, half, 2)))
    rows = (2 * angles, 2 * angles + 1) if is_woven else (angles, angles + half)
    heads = np.arange(num_heads)[:, None] * 2 * half
    return (heads + np.concatenate(rows)).reshape(-1)
