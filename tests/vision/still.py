"""Small models of images, several architectures of them, and what each is held to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openai
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from headstock.checkpoint.folder import open_folder
from headstock.graph.build import build_model
from headstock.graph.loader import load_weights
from headstock.multimodal.families import find_family
from headstock.multimodal.process import to_pieces
from headstock.wire.media import View
from tests.e2e.served import served
from tests.models.conftest import randomize
from tests.models.harness import REGISTRY, context
from tests.vision.conftest import ID_OF, PAD, TEMPLATE, data_url, save_tokenizer

Prepare = Callable[[list[int], Sequence[Image.Image]], dict[str, Any]]
"""Turns ids with a placeholder for each image, and the images, into what the oracle is given."""
WORDS = {
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 272,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "eos_token_id": ID_OF["<|im_end|>"],
}
ROOM = {"max_model_len": 48, "cache_tokens": 60, "chunked_prefill_size": 24}


@dataclass
class StillModel:
    """A checkpoint on disk, the transformers model that wrote it, and how it is asked.

    Attributes:
        path: Of the checkpoint.
        oracle: The model.
        prepare: Makes its inputs.
        room: What is too little for several requests at once.
        encode: Returns the oracle's features of what was prepared; None: as most models do.
        forward: Returns an oracle's logits of what was prepared; None: as most models do.
    """

    path: Path
    oracle: transformers.PreTrainedModel
    prepare: Prepare
    room: dict[str, int] = field(default_factory=lambda: dict(ROOM))
    encode: Callable[..., Tensor] | None = None
    forward: Callable[..., Tensor] | None = None

    @property
    def tokenizer(self) -> Any:
        """What turns text into ids."""
        return transformers.AutoTokenizer.from_pretrained(self.path)

    def logits(self, **given: Any) -> Tensor:
        """Return the logits of all tokens of a prompt. [T, V]"""
        with torch.no_grad():
            if self.forward is not None:
                return self.forward(self.oracle, **given)[0]
            return self.oracle(**given, use_cache=False).logits[0]

    def features(self, **given: Any) -> Tensor:
        """Return the features of images' tokens, of what was prepared of them. [M, F]"""
        with torch.no_grad():
            if self.encode is not None:
                return self.encode(**given)
            found = self.oracle.model.get_image_features(**given).pooler_output
        return torch.cat(list(found)) if not isinstance(found, Tensor) else found.flatten(0, -2)

    def logprobs(self, ids: Sequence[int], images: Sequence[Image.Image]) -> Tensor:
        """Return the logprob of every id but the first of an expanded prompt. [T - 1]"""
        given = self.prepare(list(ids), images)
        logits = self.logits(**given)
        return logits[:-1].log_softmax(-1).gather(1, given["input_ids"][0, 1:, None])[:, 0]

    def generate(self, ids: Sequence[int], images: Sequence[Image.Image], count: int) -> list[int]:
        """Return the ids that the oracle draws greedily, each by a forward pass of all before."""
        given = self.prepare(list(ids), images)
        drawn: list[int] = []
        for _ in range(count):
            drawn.append(int(self.logits(**given)[-1].argmax()))
            types = ("token_type_ids", "mm_token_type_ids")
            for name, value in (("input_ids", drawn[-1]), *((name, 0) for name in types)):
                if name in given:
                    more = torch.tensor([[value]], dtype=given[name].dtype)
                    given[name] = torch.cat((given[name], more), dim=1)
        return drawn


def save(
    path: Path,
    config: Any,
    name: str,
    processor: Any,
    template: str = TEMPLATE,
    more: Sequence[str] = (),
    image: str = "<|image_pad|>",
) -> Any:
    """Save a model of random weights with its tokenizer and processor; returns the model."""
    torch.manual_seed(0)
    kind = getattr(transformers, f"{name}ForConditionalGeneration")
    oracle = kind._from_config(config, attn_implementation="eager").eval()
    randomize(oracle)
    oracle.save_pretrained(path)
    save_tokenizer(path, template, more, image)
    processor.save_pretrained(path)
    return oracle


def expanded(ids: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Return ids with as many placeholders for each image as it has tokens. [1, T]"""
    left = list(counts)
    found: list[int] = []
    for token in ids:
        found += [PAD] * left.pop(0) if token == PAD else [token]
    assert not left, "the ids have fewer places than there are images"
    return torch.tensor([found])


def features(path: Path, images: Sequence[Image.Image]) -> Tensor:
    """Return what our encoder makes of images, as the decoding process cuts them. [M, F]"""
    files, ctx = open_folder(path), context()
    model = build_model(REGISTRY.load(files.architecture), ctx, files.config)
    files.rename(model.named)
    load_weights(model, files, ctx)
    family = find_family(files.config, path)
    assert family is not None
    assert model.media is not None
    settings = family.as_dict() | {"max_tokens": 1 << 20}
    is_alone = len(images) == 1
    cut = [piece for image in images for piece in to_pieces(image, settings, is_alone=is_alone)]
    grids = [(piece.grid[0], piece.grid[1], piece.grid[2]) for piece in cut]
    views = [None if piece.view is None else View(*piece.view) for piece in cut]
    pixels = torch.from_numpy(np.concatenate([piece.patches for piece in cut]))
    scales = (torch.tensor(family.scale), torch.tensor(family.shift))
    with torch.inference_mode():
        return model.media.encode(pixels, grids, *scales, torch.from_numpy, views)


OLD = "old"
NEW = "new"


def rewrite(source: Path, target: Path, style: str) -> None:
    """Copy a checkpoint with the tensors' names as the hub has them, or as transformers 5 does."""
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    rename = _qwen2_name if any("visual." in name for name in weights) else _tower_name
    if any("visual.post_layernorm" in name for name in weights):
        rename = _same_name
    if any("mm_projector." in name or "embed_vision." in name for name in weights):
        rename = _same_name
    if any(re.match(r"model\.text_model\.|vision_model\.", name) for name in weights):
        rename = _same_name
    named = {rename(name, style): tensor for name, tensor in weights.items()}
    save_file(named, target / "model.safetensors")
    if style == OLD and rename is _qwen2_name:
        _flatten(target / "config.json")


def _tower_name(name: str, style: str) -> str:
    name = re.sub(r"^(model\.)?(language_model\.)?lm_head\.", "lm_head.", name)
    name = re.sub(r"^(model\.)?language_model\.(model\.)?", "language_model.", name)
    name = re.sub(r"^(model\.)?vision_tower\.(vision_model\.)?", "vision_tower.", name)
    name = re.sub(r"^(model\.)?(multi_modal_projector\.|image_newline$)", r"\2", name)
    if style == NEW:
        return name if name.startswith("lm_head.") else f"model.{name}"
    name = re.sub(r"^language_model\.", "language_model.model.", name)
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
    return re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name)


def _same_name(name: str, style: str) -> str:
    """Return the name itself: these families have always had the same ones."""
    return name


def _qwen2_name(name: str, style: str) -> str:
    name = re.sub(r"^(model\.)?visual\.", "visual.", name)
    name = re.sub(r"^model\.(language_model\.)?(layers|norm|embed_tokens)\.", r"model.\2.", name)
    if style == OLD:
        return name
    name = re.sub(r"^visual\.", "model.visual.", name)
    return re.sub(r"^model\.(layers|norm|embed_tokens)\.", r"model.language_model.\1.", name)


def _flatten(file: Path) -> None:
    """Write what is the decoder's at the top, as Qwen2-VL's first files have it."""
    config = json.loads(file.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    old = {"rope_scaling": scaling, "rope_theta": rope["rope_theta"]}
    file.write_text(json.dumps({**text, **config, **old}))


def ask_as_client(
    model: StillModel,
    text: str,
    images: Sequence[Image.Image],
    count: int,
    videos: Sequence[str] = (),
    backend: str = "reference",
) -> tuple[str | None, int]:
    """Return what the OpenAI client gets to a chat with images, and the prompt's tokens."""
    parts: list[Any] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    parts += [{"type": "video_url", "video_url": {"url": url}} for url in videos]
    flags = ["--backend", backend, "--dtype", "float32", "--cache-tokens", "1024"]
    with served(str(model.path), *flags, "--max-model-len", "256") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        answer = client.chat.completions.create(
            model=model.path.name,
            messages=[{"role": "user", "content": parts}],
            temperature=0,
            max_tokens=count,
            extra_body={"ignore_eos": True},
        )
    assert answer.usage is not None
    return answer.choices[0].message.content, answer.usage.prompt_tokens


def chat_ids(model: StillModel, text: str, images: int, written: tuple[str, str]) -> list[int]:
    """Return the ids of that chat, after ``written``'s first was replaced by its second."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.path)
    content = [{"type": "text", "text": text}, *[{"type": "image"}] * images]
    shown = [{"role": "user", "content": content}]
    made = tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
    return tokenizer(made.replace(*written), add_special_tokens=False)["input_ids"]


def text_of(model: StillModel, ids: Sequence[int]) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.path)
    return tokenizer.decode(ids, skip_special_tokens=True)
