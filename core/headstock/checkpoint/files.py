"""What a model's files are once found: configuration, tokenizer source and tensors. No torch.

Arrays here are numpy; bfloat16, which numpy lacks, comes as uint16 bits with ``dtype`` saying so.
Shapes: O output features, I input features, G groups along I.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstock.checkpoint.mapping import MappedFile
from headstock.errors import CheckpointError
from headstock.ops.layouts import CanonicalLayout
from headstock.ops.linear import DENSE

if TYPE_CHECKING:
    from headstock.checkpoint.sentence import SentenceFiles

Array = NDArray[Any]
Progress = Callable[[int, int], None]
"""Called with (done, total), in bytes."""

LENGTH_KEYS = ("max_position_embeddings",)
FLOAT_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a checkpoint: what is known of it, and how to read rows of it.

    Attributes:
        name: As Hugging Face names it.
        shape: As the model sees it, whatever its layout packs. Rows first.
        dtype: Of its elements where the layout is dense: ``float32``, ``float16``, ``bfloat16`` …
        layout: A canonical layout, one of :data:`headstock.ops.linear.LAYOUTS` or a plugin's.
        group_size: Input features that share a scale; 0 for dense.
        num_bytes: What it takes in the file.
        read: Rows [begin, end) to canonical parts; a view of the file where no conversion is
            needed.
        file: That has it, or most of it; None where it is in none.
        of_expert: Of a stack of quantised matrices [E, A, B]: from an expert's number, and whether
            inputs come before outputs, to its matrix; None: it is no such stack.
        ordered: What else it can be had as, by who puts activations in that order; or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: CanonicalLayout = DENSE
    group_size: int = 0
    num_bytes: int
    read: Callable[[int, int], Mapping[str, Array]] = field(repr=False, compare=False)
    file: MappedFile | None = field(default=None, repr=False, compare=False)
    of_expert: Callable[[int, bool], StoredTensor] | None = field(
        default=None, repr=False, compare=False
    )
    ordered: OrderedInputs | None = field(default=None, repr=False, compare=False)

    def read_all(self) -> Mapping[str, Array]:
        """Return the parts of the whole tensor."""
        return self.read(0, self.shape[0] if self.shape else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedInputs:
    """The same matrix in a smaller layout, its input features in another order.

    Attributes:
        order_I: The input feature that each column of ``tensor`` belongs to. int64. [I]
        tensor: The matrix in that order.
    """

    order_I: Array
    tensor: StoredTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFTokenizer:
    """The tokenizer that a GGUF file carries, as it stands there.

    Attributes:
        model: Kind of tokenizer: ``gpt2`` is byte-level BPE, ``llama`` is SentencePiece BPE.
        pre: Name of the splitting rule before BPE, such as ``smollm``; "" when not given.
        tokens: Text of each id.
        types: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte. May be empty.
        merges: BPE merges, best first, the two parts separated by a space. May be empty.
        scores: SentencePiece scores. May be empty.
        chat_template: Jinja source, or None.
        special_ids: Ids by role: ``bos``, ``eos``, ``unknown``, ``padding``, ``eot`` …
        flags: ``add_bos_token``, ``add_eos_token``, ``add_space_prefix`` … where given.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    chat_template: str | None
    special_ids: Mapping[str, int]
    flags: Mapping[str, bool]


OTHER_SIZE_KEYS: Mapping[str, Sequence[str]] = {"hidden_size": ("n_embd", "d_model")}
"""What older configurations call a size that every model has."""
Index = Mapping[str, StoredTensor]
"""Tensors by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model on disk.

    Attributes:
        kind: ``folder`` (Hugging Face layout) or ``gguf``.
        path: The folder or the file.
        name: The model's name where none is given.
        config: In Hugging Face keys; synthesised for GGUF.
        generation_config: ``generation_config.json``, or {}.
        index: Every tensor by Hugging Face name, in the order of the files.
        read_tokenizer: For GGUF: reads the tokenizer's metadata.
        sentence: What an embedding model's files say of its vectors; None: it is none.
        left_out: Names of tensors that are not used: scales of the KV cache.
    """

    kind: Literal["folder", "gguf"]
    path: Path
    name: str
    config: dict[str, Any]
    generation_config: dict[str, Any]
    index: dict[str, StoredTensor] = field(repr=False)
    read_tokenizer: Callable[[], GGUFTokenizer] | None = field(default=None, repr=False)
    sentence: SentenceFiles | None = None
    left_out: tuple[str, ...] = ()

    @property
    def text_config(self) -> dict[str, Any]:
        """The configuration of what reads and writes tokens; models of images have it inside."""
        inside: dict[str, Any] = self.config.get("text_config") or {}
        return {**inside, **{key: v for key, v in self.config.items() if v is not None}}

    @property
    def architecture(self) -> str:
        """The first of the configuration's architectures, which names the model class.

        Raises:
            CheckpointError: There is none.
        """
        names: Sequence[Any] = self.config.get("architectures") or []
        if not names:
            raise CheckpointError(
                f"{self.path} names no architecture in its configuration.",
                remedy='Add "architectures" to config.json, such as ["LlamaForCausalLM"].',
            )
        return str(names[0])

    @property
    def vocab_size(self) -> int:
        """Number of token ids of the model.

        Raises:
            CheckpointError: The configuration does not say.
        """
        size = self.text_config.get("vocab_size")
        if size is None:
            raise CheckpointError(
                f"{self.path} has no vocab_size in its configuration.",
                remedy="Compare its config.json with the model's original.",
            )
        return int(size)

    @property
    def dtype(self) -> str:
        """The checkpoint's own dtype: as configured, else that of most bytes.

        Quantised weights count as bfloat16, which has the range for whatever they stand for.
        """
        config = self.text_config
        configured = str(config.get("dtype") or config.get("torch_dtype") or "")
        if configured in FLOAT_DTYPES:
            return configured
        sizes = dict.fromkeys(FLOAT_DTYPES, 0)
        for tensor in self.index.values():
            dtype = tensor.dtype if tensor.layout == DENSE else "bfloat16"
            if dtype in sizes:
                sizes[dtype] += tensor.num_bytes
        return max(sizes, key=lambda dtype: sizes[dtype])

    def max_length(self, keys: Sequence[str] = LENGTH_KEYS) -> int | None:
        """Return the longest request the model was made for, or None when it does not say. Tokens.

        Args:
            keys: Of the configuration; the first that is there counts.
        """
        found = [length for key in keys if (length := self.text_config.get(key))]
        return int(found[0]) if found else None

    def size(self, key: str) -> int:
        """Return a size of the configuration that every model has, such as ``vocab_size``.

        Raises:
            CheckpointError: The configuration does not say.
        """
        names = (key, *OTHER_SIZE_KEYS.get(key, ()))
        size = next((self.text_config[name] for name in names if name in self.text_config), None)
        if isinstance(size, bool) or not isinstance(size, int):
            raise CheckpointError(
                f"{self.path} has {key} {size!r} in its configuration.",
                remedy="Compare its config.json with the model's original.",
            )
        return size

    @property
    def eos_ids(self) -> list[int]:
        """Every id that ends a generation: of the generation config, then of the config."""
        found: list[int] = []
        for source in (self.generation_config, self.text_config):
            ids = source.get("eos_token_id")
            found += ids if isinstance(ids, list) else [] if ids is None else [ids]
        return list(dict.fromkeys(int(i) for i in found))

    @property
    def default_sampling(self) -> dict[str, Any]:
        """Sampling defaults that the model's authors chose, in the fields of SamplingParams."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        chosen = {n: v for n in names if (v := self.generation_config.get(n)) is not None}
        if chosen.get("top_k") == 0:
            chosen["top_k"] = -1
        limit = self.generation_config.get("max_new_tokens")
        return chosen | ({"max_new_tokens": int(limit)} if limit else {})

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors in the files."""
        return sum(tensor.num_bytes for tensor in self.index.values())

    def tensors(self) -> Iterator[StoredTensor]:
        """Yield every tensor in the order of the files, so that reading them is sequential."""
        yield from self.index.values()

    def rename(self, named: Callable[[Index], Index]) -> None:
        """Have the tensors by other names, in their order.

        Args:
            named: From the tensors by the files' names to the same by others.
        """
        renamed = {name: replace(t, name=name) for name, t in named(self.index).items()}
        self.index.clear()
        self.index.update(renamed)

    def close(self) -> None:
        """Forget the tensors, so that the files' memory maps go once nothing reads from them."""
        self.index.clear()


def dense_reader(array: Array) -> Callable[[int, int], Mapping[str, Array]]:
    """Return a ``StoredTensor.read`` for an array that is canonical as it stands.

    Rows are copied only where the file has them at an odd address.
    """

    def read(begin: int, end: int) -> Mapping[str, Array]:
        return {"weight": np.require(np.atleast_1d(array)[begin:end], requirements="A")}

    return read


EXPONENT_BIAS = 127
"""Of float8_e8m0fnu: a byte stands for 2 to the power of what is left."""


def as_float32(dtype: str, values: Array) -> Array:
    """Widen floating point ``values``; of types that numpy lacks they are the bits."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if dtype == "float8_e8m0fnu":
        return np.ldexp(np.float32(1), values.astype(np.int32) - EXPONENT_BIAS)
    if dtype == "float8_e4m3fn":
        return E4M3_VALUES[values]
    return values.astype(np.float32)


def _e4m3_values() -> Array:
    """Return what each byte of a float8_e4m3fn stands for."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    magnitude = np.where(exponent > 0, normal, np.ldexp(mantissa / 8, -6))
    magnitude[(code & 127) == 127] = np.nan
    return np.where(code < 128, magnitude, -magnitude).astype(np.float32)


E4M3_VALUES = _e4m3_values()
