"""Says in Hugging Face keys what a GGUF file's metadata says of its model.

Source:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "LLM" section.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headstock.checkpoint.files import GGUFTokenizer
from headstock.checkpoint.gguf_file import GGUFFile, SkippedArray
from headstock.errors import CheckpointError, UnsupportedError, did_you_mean

MAX_FREQUENCY_FACTORS = 4096
ROPE_FACTORS = "rope_freqs.weight"
"""Tensor with a divisor for each rotary frequency: how Llama 3's scaling comes in a GGUF."""


@dataclass(frozen=True, slots=True)
class Family:
    """An ``general.architecture`` that we can name in Hugging Face's words."""

    model_type: str
    architecture: str
    is_rope_interleaved: bool
    """Rows of q and k are stored in pairs (i, i + half) side by side."""


FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", is_rope_interleaved=True),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", is_rope_interleaved=False),
}


def family_of(file: GGUFFile) -> Family:
    """Return the family of the file's architecture.

    Raises:
        UnsupportedError: We do not know it.
    """
    name = str(file.metadata.get("general.architecture", ""))
    if name not in FAMILIES:
        raise UnsupportedError(
            f"{file.path} is of GGUF architecture {name or 'unknown'!r}."
            f"{did_you_mean(name, FAMILIES)}",
            remedy=f"GGUF files can be of: {', '.join(sorted(FAMILIES))}."
            " Use the model's Hugging Face folder instead.",
        )
    return FAMILIES[name]


def read_config(file: GGUFFile) -> dict[str, Any]:
    """Return the configuration in Hugging Face keys.

    Raises:
        CheckpointError: A value that every model needs is missing or of the wrong type.
        UnsupportedError: The architecture is not known, or is a mixture of experts.
    """
    family = family_of(file)
    number = _numbers(file)
    hidden_size, num_heads = int(number("embedding_length")), int(number("attention.head_count"))
    if num_heads < 1 or number("expert_count", 0):
        raise UnsupportedError(
            f"{file.path} has {num_heads} heads and {number('expert_count', 0)} experts a layer.",
            remedy="Serve a dense model.",
        )
    head_dim = int(number("attention.key_length", hidden_size // num_heads))
    tokenizer = {
        f"{role}_token_id": file.metadata.get(f"tokenizer.ggml.{role}_token_id")
        for role in ("bos", "padding")
    }
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_size": hidden_size,
        "intermediate_size": int(number("feed_forward_length")),
        "num_hidden_layers": int(number("block_count")),
        "num_attention_heads": num_heads,
        "num_key_value_heads": int(number("attention.head_count_kv", num_heads)),
        "head_dim": head_dim,
        "partial_rotary_factor": int(number("rope.dimension_count", head_dim)) / head_dim,
        "rms_norm_eps": float(number("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": int(number("context_length")),
        "vocab_size": _vocab_size(file),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(file, number, head_dim),
        "bos_token_id": tokenizer["bos_token_id"],
        "pad_token_id": tokenizer["padding_token_id"],
        "eos_token_id": _eos_ids(file),
    }


def read_tokenizer(file: GGUFFile) -> GGUFTokenizer:
    """Return the tokenizer's metadata.

    Raises:
        CheckpointError: There is none.
    """
    metadata, prefix = file.metadata, "tokenizer.ggml."
    model, tokens = metadata.get(f"{prefix}model"), file.array(f"{prefix}tokens")
    if not isinstance(model, str) or not tokens:
        raise CheckpointError(
            f"{file.path} carries no tokenizer.", remedy="Name one with --tokenizer."
        )
    scalars = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    template = metadata.get("tokenizer.chat_template")
    return GGUFTokenizer(
        model=model,
        pre=str(scalars.get("pre", "")),
        tokens=[str(token) for token in tokens],
        types=file.array(f"{prefix}token_type"),
        merges=file.array(f"{prefix}merges"),
        scores=file.array(f"{prefix}scores"),
        chat_template=template if isinstance(template, str) else None,
        special_ids={
            name.removesuffix("_token_id"): value
            for name, value in scalars.items()
            if name.endswith("_token_id") and isinstance(value, int)
        },
        flags={name: value for name, value in scalars.items() if isinstance(value, bool)},
    )


def _numbers(file: GGUFFile) -> Callable[..., int | float]:
    """Return a look-up of the architecture's numbers, with an optional default."""
    architecture = file.metadata["general.architecture"]

    def number(key: str, default: int | float | None = None) -> int | float:
        value = file.metadata.get(f"{architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            what = "differs by layer" if isinstance(value, SkippedArray) else f"is {value!r}"
            raise CheckpointError(
                f"{file.path}: metadata key {architecture}.{key} {what}, not a number.",
                remedy="Convert the model again, or use its Hugging Face folder.",
            )
        return value

    return number


def _vocab_size(file: GGUFFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(
            f"{file.path} has no token_embd.weight matrix.", remedy="Download the file again."
        )
    return embedding.shape[0]


def _rope(file: GGUFFile, number: Callable[..., int | float], head_dim: int) -> dict[str, Any]:
    """Return rotary parameters; tabled factors become the type ``frequency_factors``."""
    rope: dict[str, Any] = {"rope_theta": float(number("rope.freq_base", 10000.0))}
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is not None:
        if factors.shape[0] > MAX_FREQUENCY_FACTORS or factors.block.dtype != "float32":
            raise CheckpointError(
                f"{file.path}: {ROPE_FACTORS} is {factors.block.name} {list(factors.shape)},"
                f" not F32 of half a head ({head_dim // 2}).",
                remedy="Convert the model again.",
            )
        values = factors.block.convert(file.blocks(factors))["weight"].ravel().tolist()
        return rope | {"rope_type": "frequency_factors", "factors": values}
    architecture = file.metadata["general.architecture"]
    kind = str(file.metadata.get(f"{architecture}.rope.scaling.type", "none"))
    if kind == "none":
        return rope | {"rope_type": "default"}
    rope |= {"rope_type": kind, "factor": float(number("rope.scaling.factor", 1.0))}
    if kind == "yarn":
        original = number("rope.scaling.original_context_length", number("context_length"))
        rope["original_max_position_embeddings"] = int(original)
    return rope


def _eos_ids(file: GGUFFile) -> list[int]:
    """Return the ids that end a text, a turn or a message, as far as the file names them."""
    roles = ("eos", "eot", "eom")
    ids = [file.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in roles]
    return list(dict.fromkeys(i for i in ids if isinstance(i, int)))
