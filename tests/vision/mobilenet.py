"""MobileNet V5 in plain PyTorch, and a small Gemma 3n that sees by it.

transformers takes this encoder from timm, which needs torchvision, and that is seldom there for the
PyTorch at hand. So it is written again here, after the paper and timm's table of blocks, in images
by channels; ``test_mobilenet.py`` compares it with timm where that is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.gemma3n import modeling_gemma3n
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.vision.conftest import END, PAD, START
from tests.vision.still import WORDS, StillModel, expanded, save

NARROW, SIDE = 0.0625, 3
"""Times the features of the real one; tokens of an image in height and width (16 in that)."""
PIXELS = 48 * SIDE
ARGUMENTS = {"channel_multiplier": NARROW, "msfa_output_resolution": SIDE}
TABLE = [
    ["er 3 2 4 128"] + ["er 3 1 4 128"] * 2,
    ["uir 3 5 2 6 256"] + ["uir 5 0 1 4 256", "uir 3 0 1 4 256"] * 2,
    ["uir 5 5 2 6 640"]
    + ["uir 5 0 1 4 640"] * 7
    + ["uir 0 0 1 1 640"]
    + ["mqa 12 64 2 640", "uir 0 0 1 2 640"] * 14,
    ["uir 5 5 2 6 1280"] + ["mqa 16 96 1 1280", "uir 0 0 1 2 1280"] * 19,
]
"""Of each stage the blocks: kernels, stride, expansion, features; or heads, size, stride."""


class Same(nn.Conv2d):
    """A convolution with as many zeros around as leave ceil(size / stride) places."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, **more: Any
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, **{"bias": False, **more})

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            stride, kernel = self.stride[0], self.kernel_size[0]
            missing = max(((size + stride - 1) // stride - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(functional.pad(x, pads))


class Norm(nn.Module):
    def __init__(self, size: int, *, is_activated: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size).uniform_(0.5, 1.5))
        self.is_activated = is_activated

    def forward(self, x: Tensor) -> Tensor:
        scale = (x.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()
        x = x * scale * self.weight[None, :, None, None]
        return functional.gelu(x, approximate="tanh") if self.is_activated else x


class ConvNorm(nn.Module):
    def __init__(self, conv: nn.Module, size: int, *, is_activated: bool = False) -> None:
        super().__init__()
        self.conv, self.bn = conv, Norm(size, is_activated=is_activated)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class LayerScale(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(size).uniform_(-0.6, 0.6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[None, :, None, None]


class EdgeResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, ratio: int) -> None:
        super().__init__()
        between = inputs * ratio
        self.conv_exp = Same(inputs, between, kernel, stride)
        self.bn1 = Norm(between, is_activated=True)
        self.conv_pwl, self.bn2 = Same(between, outputs), Norm(outputs)
        self.is_added = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv_pwl(self.bn1(self.conv_exp(x))))
        return x + y if self.is_added else y


class Inverted(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        start: int,
        middle: int,
        stride: int,
        ratio: int,
        **more: Any,
    ) -> None:
        super().__init__()
        between = inputs * ratio
        self.dw_start = self.dw_mid = nn.Identity()
        if start:
            own = 1 if middle else stride
            conv = Same(inputs, inputs, start, own, groups=inputs)
            self.dw_start = ConvNorm(conv, inputs)
        self.pw_exp = ConvNorm(Same(inputs, between), between, is_activated=True)
        if middle:
            conv = Same(between, between, middle, stride, groups=between)
            self.dw_mid = ConvNorm(conv, between, is_activated=True)
        self.pw_proj = ConvNorm(Same(between, outputs), outputs)
        is_last = more.get("is_last", False)
        self.layer_scale = nn.Identity() if is_last else LayerScale(outputs)
        self.is_added = inputs == outputs and stride == 1 and not is_last

    def forward(self, x: Tensor) -> Tensor:
        y = self.pw_proj(self.dw_mid(self.pw_exp(self.dw_start(x))))
        y = self.layer_scale(y)
        return x + y if self.is_added else y


class Attention(nn.Module):
    """Softmax of products of every place's queries with one head of keys, written out."""

    def __init__(self, size: int, heads: int, width: int, stride: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.query = nn.Sequential()
        self.query.add_module("proj", Same(size, heads * width))
        for name in ("key", "value"):
            part = nn.Sequential()
            if stride > 1:
                part.add_module("down_conv", Same(size, size, 3, stride, groups=size))
                part.add_module("norm", Norm(size))
            part.add_module("proj", Same(size, width))
            self.add_module(name, part)
        self.output = nn.Sequential()
        self.output.add_module("proj", Same(heads * width, size))

    def forward(self, x: Tensor) -> Tensor:
        queries = self.query(x).reshape(x.shape[0], self.heads, self.width, -1)
        keys, values = self.key(x).flatten(2), self.value(x).flatten(2)
        weights = torch.einsum("bhwq,bwk->bhqk", queries, keys) / self.width**0.5
        out = torch.einsum("bhqk,bwk->bhwq", weights.softmax(-1), values)
        return self.output(out.reshape(x.shape[0], -1, *x.shape[2:]))


class MobileAttention(nn.Module):
    def __init__(self, size: int, heads: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm, self.attn = Norm(size), Attention(size, heads, width, stride)
        self.layer_scale = LayerScale(size)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale(self.attn(self.norm(x)))


class Fusion(nn.Module):
    def __init__(self, inputs: int, side: int) -> None:
        super().__init__()
        self.ffn = Inverted(inputs, 2048, 0, 0, 1, 2, is_last=True)
        self.norm, self.side = Norm(2048), side

    def forward(self, large: Tensor, small: Tensor) -> Tensor:
        small = functional.interpolate(small, size=large.shape[2:], mode="nearest")
        return self.norm(
            functional.avg_pool2d(
                self.ffn(torch.cat((large, small), 1)), large.shape[2] // self.side
            )
        )


class MobileNet(nn.Module):
    """Pixels to features of 2048. [B, 3, H, W] to [B, 2048, side, side]"""

    def __init__(self, channel_multiplier: float = NARROW, msfa_output_resolution: int = SIDE):
        super().__init__()
        stem = Same(3, 64, 3, 2, bias=True)
        self.conv_stem = ConvNorm(stem, 64, is_activated=True)
        stages: list[nn.Module] = []
        size, sizes = 64, []
        for rows in TABLE:
            blocks: list[nn.Module] = []
            for row in rows:
                kind, *numbers = row.split()
                *given, full = (int(number) for number in numbers)
                wide = int(full * channel_multiplier)
                if kind == "mqa":
                    blocks.append(MobileAttention(size, *given))
                else:
                    made = EdgeResidual if kind == "er" else Inverted
                    blocks.append(made(size, wide, *given))
                size = wide
            stages.append(nn.Sequential(*blocks))
            sizes.append(size)
        self.blocks = nn.Sequential(*stages)
        self.msfa = Fusion(sum(sizes[-2:]), msfa_output_resolution)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_stem(x)
        made: list[Tensor] = []
        for stage in self.blocks:
            x = stage(x)
            made.append(x)
        return self.msfa(*made[-2:])


class Tower(transformers.PreTrainedModel):
    """The encoder as transformers' wrapper of timm's models has it."""

    config_class = transformers.Gemma3nVisionConfig
    base_model_prefix = "timm_model"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.timm_model = MobileNet(**config.model_args)
        self._made: dict[bytes, Tensor] = {}
        self.post_init()

    def forward(self, pixel_values: Tensor, **given: Any) -> Any:
        """Return features; of images that were seen before, what they were then."""
        key = pixel_values.numpy().tobytes()
        if key not in self._made:
            self._made[key] = self.timm_model(pixel_values)
        hidden = self._made[key].clone()
        return transformers.modeling_outputs.BaseModelOutputWithPooling(last_hidden_state=hidden)

    def _init_weights(self, module: nn.Module) -> None:
        """Keep what is drawn."""


@contextmanager
def with_tower() -> Iterator[None]:
    """Build Gemma 3n with this encoder in place of timm's within the block."""
    usual = modeling_gemma3n.AutoModel

    class Models:
        @staticmethod
        def from_config(config: Any, **more: Any) -> Any:
            if isinstance(config, transformers.Gemma3nVisionConfig):
                return Tower(config)
            return usual.from_config(config, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_gemma3n, "AutoModel", Models)
        yield


TEXT = WORDS | {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "intermediate_size": [96, 64, 96, 96],
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 7,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": END,
    "activation_sparsity_pattern": [0.9, 0.5, 0.0, 0.0],
    "altup_num_inputs": 3,
    "laurel_rank": 8,
    "final_logit_softcapping": 3.0,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
}
SOUND = {
    "hidden_size": 16,
    "conf_num_hidden_layers": 1,
    "conf_num_attention_heads": 2,
    "sscp_conv_channel_size": (4, 4),
    "vocab_offset": END + 3,
    "vocab_size": 9,
}


def make_gemma3n(path: Path) -> StillModel:
    """Return Gemma 3n, whose images are 3 x 3 tokens; the last ids are of images and sound."""
    config = transformers.Gemma3nConfig(
        text_config=TEXT,
        vision_config={"model_args": ARGUMENTS, "vocab_offset": END, "vocab_size": 3},
        audio_config=SOUND,
        vision_soft_tokens_per_image=SIDE**2,
        boi_token_id=START,
        eoi_token_id=END,
        image_token_id=PAD,
        audio_token_id=END + 4,
    )
    processor = SiglipImageProcessorPil(
        size={"height": PIXELS, "width": PIXELS}, do_normalize=False, resample=2
    )
    with with_tower():
        oracle = save(path, config, "Gemma3n", processor)

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if images:
            found["pixel_values"] = processor(list(images), return_tensors="pt")["pixel_values"]
        return {"input_ids": expanded(ids, [SIDE**2] * len(images)), **found}

    return StillModel(path, oracle, prepare)
