"""Says in Hugging Face keys what a GGUF file's metadata says of its model.

Source:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "LLM" section.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headstock.checkpoint.files import GGUFTokenizer
from headstock.checkpoint.gguf_file import GGUFFile, SkippedArray
from headstock.errors import CheckpointError, UnsupportedError, did_you_mean

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor with a divisor for each rotary frequency: how Llama 3's scaling comes in a GGUF."""


@dataclass(frozen=True, slots=True)
class Family:
    """An ``general.architecture`` that we can name in Hugging Face's words."""

    model_type: str
    architecture: str
    is_rope_interleaved: bool = False
    """Rows of q and k are stored in pairs (i, i + half) side by side."""
    norm_offset: float = 0.0
    """What the file's norm weights have more than Hugging Face's."""
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    """Tensors of a layer that are called otherwise than in the family llama."""
    experts: Mapping[str, str] = field(default_factory=dict[str, str])
    """Stacked tensors of a layer, to the names of one expert's, with ``{}`` for its number."""
    rope: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Rotary parameters that the file does not have."""
    sizes: Mapping[str, str] = field(default_factory=dict[str, str])
    """Hugging Face's keys of counts that other families have not, to the file's."""
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Hugging Face's keys that the file does not have, since all of the family are so."""


GEMMA_NAMES = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def _experts(prefix: str, gate: str, up: str, down: str) -> dict[str, str]:
    matrices = {"ffn_gate_exps": gate, "ffn_up_exps": up, "ffn_down_exps": down}
    return {name: f"{prefix}.experts.{{}}.{matrix}" for name, matrix in matrices.items()}


_QWEN_EXPERTS = _experts("mlp", "gate_proj", "up_proj", "down_proj")
FAMILIES = {
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", norm_offset=1.0, names=GEMMA_NAMES),
    "gpt-oss": Family(
        "gpt_oss",
        "GptOssForCausalLM",
        names={
            "post_attention_norm": "post_attention_layernorm",
            "attn_sinks": "self_attn.sinks",
            "ffn_gate_inp": "mlp.router",
        },
        experts=_QWEN_EXPERTS,
        rope={"truncate": False},
        sizes={
            "intermediate_size": "expert_feed_forward_length",
            "num_local_experts": "expert_count",
            "num_experts_per_tok": "expert_used_count",
            "sliding_window": "attention.sliding_window",
        },
    ),
    "llama": Family("llama", "LlamaForCausalLM", is_rope_interleaved=True),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        names={"ffn_gate_inp": "mlp.gate"},
        experts=_QWEN_EXPERTS,
        sizes={
            "moe_intermediate_size": "expert_feed_forward_length",
            "num_experts": "expert_count",
            "num_experts_per_tok": "expert_used_count",
        },
        fixed={"norm_topk_prob": True},
    ),
}
MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    is_rope_interleaved=True,
    names={"ffn_gate_inp": "block_sparse_moe.gate"},
    experts=_experts("block_sparse_moe", "w1", "w3", "w2"),
    sizes={"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
)
"""What the architecture llama is where its files have experts."""


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
    return (
        MIXTRAL if name == "llama" and file.metadata.get("llama.expert_count") else FAMILIES[name]
    )


def read_config(file: GGUFFile) -> dict[str, Any]:
    """Return the configuration in Hugging Face keys.

    Raises:
        CheckpointError: A value that every model needs is missing or of the wrong type.
        UnsupportedError: The architecture is not known, or has experts where we know none.
    """
    family, numbers = family_of(file), _Numbers(file)
    if numbers.size("expert_count", 0) and not family.experts:
        raise UnsupportedError(
            f"{file.path} has {numbers.size('expert_count')} experts a layer.",
            remedy="Use the model's Hugging Face folder instead.",
        )
    hidden_size, num_heads = numbers.size("embedding_length"), numbers.size("attention.head_count")
    head_dim = numbers.size("attention.key_length", hidden_size // max(num_heads, 1))
    num_layers = numbers.size("block_count")
    _check_sizes(file, num_heads, head_dim, num_layers)
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_size": hidden_size,
        "intermediate_size": numbers.size("feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": numbers.size("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "partial_rotary_factor": numbers.size("rope.dimension_count", head_dim) / head_dim,
        "rms_norm_eps": numbers.real("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": numbers.size("context_length"),
        "vocab_size": _vocab_size(file),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(file, numbers, head_dim) | dict(family.rope),
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
        "eos_token_id": _eos_ids(file),
    }
    config |= {key: numbers.size(name) for key, name in family.sizes.items()} | dict(family.fixed)
    return config | (_of_gemma3(numbers, config) if family.model_type == "gemma3_text" else {})


GEMMA3_LOCAL_THETA = 10000.0
GEMMA3_27B_LAYERS = 62
"""The one size whose scores are scaled by the width of the model, not of a head."""


def _of_gemma3(numbers: _Numbers, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Gemma 3 has beyond others: five windows a full layer, each with its rotation."""
    is_27b = config["num_hidden_layers"] == GEMMA3_27B_LAYERS
    width = config["hidden_size"] // config["num_attention_heads"]
    local = numbers.real("rope.freq_base_swa", GEMMA3_LOCAL_THETA)
    return {
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": width if is_27b else config["head_dim"],
        "sliding_window": numbers.size("attention.sliding_window"),
        "final_logit_softcapping": numbers.optional_real("final_logit_softcapping"),
        "rope_parameters": {
            "full_attention": config["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
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


class _Numbers:
    """Looks up numbers below the file's architecture, with an optional default."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._prefix = f"{file.metadata['general.architecture']}."

    def size(self, key: str, default: int | None = None) -> int:
        """Return a count."""
        value = self._file.metadata.get(self._prefix + key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise self._malformed(key, value, "a count")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Return a positive number."""
        value = self._file.metadata.get(self._prefix + key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise self._malformed(key, value, "a positive number")
        return float(value)

    def optional_real(self, key: str) -> float | None:
        """Return a positive number, or None where there is none."""
        return self.real(key) if self._prefix + key in self._file.metadata else None

    def text(self, key: str) -> str:
        """Return a text, "" when there is none."""
        value = self._file.metadata.get(self._prefix + key, "")
        return value if isinstance(value, str) else ""

    def _malformed(self, key: str, value: object, wanted: str) -> CheckpointError:
        what = "differs from layer to layer" if isinstance(value, SkippedArray) else f"is {value!r}"
        return CheckpointError(
            f"{self._file.path}: metadata key {self._prefix}{key} {what}, not {wanted}.",
            remedy="Convert the model again, or use its Hugging Face folder.",
        )


def _check_sizes(file: GGUFFile, num_heads: int, head_dim: int, num_layers: int) -> None:
    """Refuse sizes that the tensors belie: a model is built by them, however large they are."""
    rows = [t.shape[0] for n, t in file.tensors.items() if n.endswith(".attn_q.weight")]
    is_size = num_heads > 0 and head_dim > 0 and num_layers == len(rows) > 0
    if not is_size or set(rows) != {num_heads * head_dim}:
        raise CheckpointError(
            f"{file.path} claims {num_layers} layers with {num_heads} heads of {head_dim}; it has"
            f" {len(rows)} layers with query rows {sorted(set(rows))[:3]}.",
            remedy="Download the file again.",
        )


def _vocab_size(file: GGUFFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(
            f"{file.path} has no token_embd.weight matrix.", remedy="Download the file again."
        )
    return embedding.shape[0]


def _rope(file: GGUFFile, numbers: _Numbers, head_dim: int) -> dict[str, Any]:
    """Return rotary parameters; tabled factors become the type ``frequency_factors``."""
    rope: dict[str, Any] = {"rope_theta": numbers.real("rope.freq_base", 10000.0)}
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is not None:
        if factors.shape != (head_dim // 2,) or factors.block.dtype != "float32":
            raise CheckpointError(
                f"{file.path}: {ROPE_FACTORS} is {factors.block.name} {list(factors.shape)},"
                f" not F32 [{head_dim // 2}].",
                remedy="Convert the model again.",
            )
        values = factors.block.convert(file.blocks(factors))["weight"].ravel().tolist()
        return rope | {"rope_type": "frequency_factors", "factors": values}
    kind = numbers.text("rope.scaling.type") or "none"
    if kind == "none":
        return rope | {"rope_type": "default"}
    rope |= {"rope_type": kind, "factor": numbers.real("rope.scaling.factor", 1.0)}
    if kind == "yarn":
        original = numbers.size(
            "rope.scaling.original_context_length", numbers.size("context_length")
        )
        rope["original_max_position_embeddings"] = original
    return rope


def _eos_ids(file: GGUFFile) -> list[int]:
    """Return the ids that end a text, a turn or a message, as far as the file names them."""
    roles = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
    ids = [file.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in roles]
    return list(dict.fromkeys(i for i in ids if isinstance(i, int)))
