"""What a folder says of turning hidden states into a vector: the files of sentence-transformers.

``modules.json`` lists what follows the model; the folder of each part has its own configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from headstock.checkpoint.bounded import read_json_bounded, read_object_bounded
from headstock.errors import CheckpointError

PoolKind = Literal["last", "mean", "cls"]
DenseActivation = Literal["identity", "tanh"]
TokenKind = Literal["token_embed", "token_classify"]
VECTORS: TokenKind = "token_embed"
SCORES: TokenKind = "token_classify"
TOKEN_HEADS: Mapping[TokenKind, str] = {VECTORS: "colbert_linear.pt", SCORES: "sparse_linear.pt"}
"""Files beside a model of what single tokens yield, as BGE-M3 has them."""
MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
LENGTH = "sentence_bert_config.json"
PREFIX = "sentence"
"""What stands before the names of the tensors that such folders have: ``sentence.dense.0.``."""
COMPUTED = "Transformer, Pooling, Dense and Normalize are computed, in this order"
_MODES: Mapping[str, PoolKind] = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
_NAMES: Mapping[str, PoolKind] = {"lasttoken": "last", "mean": "mean", "cls": "cls"}
_ACTIVATIONS: Mapping[str, DenseActivation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
}


@dataclass(frozen=True, slots=True)
class Dense:
    """A product that a pooled vector goes through.

    Attributes:
        folder: Where its weights are, below the model's folder.
        in_features: Elements that go in.
        out_features: Elements that come out.
        has_bias: Whether something is added to each.
        activation: What they go through then.
    """

    folder: str
    in_features: int
    out_features: int
    has_bias: bool = True
    activation: DenseActivation = "tanh"


@dataclass(frozen=True, slots=True)
class TokenHead:
    """A product that the hidden states of single tokens go through.

    Attributes:
        kind: ``token_embed``: it makes vectors; ``token_classify``: scores over 0.
        file: Name of the file that has its weights, in the model's folder.
        in_features: Elements that go in.
        out_features: Elements that come out.
        has_bias: Whether something is added to each.
    """

    kind: TokenKind
    file: str
    in_features: int
    out_features: int
    has_bias: bool = True

    @property
    def prefix(self) -> str:
        """What stands before the names of its tensors."""
        return f"{PREFIX}.{'vectors' if self.kind == VECTORS else 'scores'}.linear."


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the hidden states of a row become one vector.

    Attributes:
        kind: Of its last token, the mean of all, or of its first (``cls``).
        is_normalized: Whether the vector is divided by its length, at the end.
        dense: The products that it goes through before that, in their order.
        tokens: What single tokens yield beside it, one of a kind.
    """

    kind: PoolKind
    is_normalized: bool = False
    dense: tuple[Dense, ...] = ()
    tokens: tuple[TokenHead, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceFiles:
    """What the files of an embedding model say beside its configuration.

    Attributes:
        pooling: How hidden states become a vector; None: as ``problem`` says.
        problem: What of it is not computed here; "": all is. It matters where vectors are wanted.
        prompts: Text that goes before an input, by its name, such as ``query``.
        default_prompt: Name of the prompt that an input has when none is named; "": none.
        max_length: Longest input that it was made for; None: the model's own. Tokens.
        verdict_ids: Of a reranker that generates: the ids that say yes and no; (): it is none.
        activation: Class of what a reranker's scores go through; "": the usual one.
    """

    pooling: Pooling | None
    problem: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    default_prompt: str = ""
    max_length: int | None = None
    verdict_ids: tuple[int, ...] = ()
    activation: str = ""


def read_sentence_files(path: Path) -> SentenceFiles | None:
    """Return what the folder ``path`` says; None: it has no ``modules.json``.

    Raises:
        CheckpointError: A file is damaged, or contradicts itself.
    """
    try:
        modules = read_json_bounded(path / MODULES)
    except FileNotFoundError:
        return None
    if not isinstance(modules, list) or not modules:
        raise _damaged(path / MODULES, "lists no modules")
    found = _Found()
    for module in cast("list[Any]", modules):
        _add_module(path, module, found)
    if found.kind is None and not found.problem:
        found.problem = f"{path / MODULES} has no Pooling module."
    prompts, default = _prompts(path / PROMPTS)
    pooling = None
    if found.kind is not None and not found.problem:
        heads = tuple(_token_heads(path))
        pooling = Pooling(found.kind, found.is_normalized, tuple(found.dense), heads)
    return SentenceFiles(
        pooling=pooling,
        problem=found.problem,
        prompts=prompts,
        default_prompt=default,
        max_length=found.max_length,
        verdict_ids=found.verdict_ids,
        activation=str(_object(path / PROMPTS).get("activation_fn") or ""),
    )


@dataclass(slots=True)
class _Found:
    """What the modules so far say; see :class:`Pooling` and :class:`SentenceFiles`."""

    kind: PoolKind | None = None
    dense: list[Dense] = field(default_factory=list[Dense])
    is_normalized: bool = False
    max_length: int | None = None
    verdict_ids: tuple[int, ...] = ()
    problem: str = ""


def _add_module(path: Path, module: Any, found: _Found) -> None:
    """Add what an entry of ``modules.json`` says to ``found``."""
    name, folder = _module(path / MODULES, module)
    is_late = found.is_normalized or (name == "Dense" and found.kind is None)
    match name:
        case "Transformer":
            found.max_length = _max_length(path / folder / LENGTH)
        case "Pooling":
            found.kind, found.problem = _pool_kind(path / folder / "config.json")
        case "Dense" if not is_late:
            dense, found.problem = _dense(path, folder)
            found.dense += [] if dense is None else [dense]
        case "Normalize":
            found.is_normalized = True
        case "LogitScore":
            config = _object(path / folder / "config.json")
            ids: list[Any] = [config.get("true_token_id"), config.get("false_token_id")]
            found.verdict_ids = tuple(ids) if all(isinstance(index, int) for index in ids) else ()
            found.problem = f"{path / MODULES} has a module {name}; {COMPUTED}."
        case _:
            found.problem = f"{path / MODULES} has a module {name}; {COMPUTED}."


def _dense(path: Path, folder: str) -> tuple[Dense | None, str]:
    """Return the product of a ``2_Dense/config.json``, or what is wrong.

    Raises:
        CheckpointError: It does not say how large it is.
    """
    file = path / folder / "config.json"
    config = _object(file)
    sizes: list[Any] = [config.get(key) for key in ("in_features", "out_features")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise _damaged(file, f"has in_features and out_features {sizes}")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS:
        known = " and ".join(_ACTIVATIONS)
        return None, f"{file} has activation_function {activation!r}; {known} are computed."
    usual: dict[str, Any] = {
        "module_input_name": "sentence_embedding",
        "module_output_name": "sentence_embedding",
        "use_residual": False,
    }
    for key, value in usual.items():
        if config.get(key) not in (None, value):
            return None, f"{file} has {key} {config[key]!r}; {value!r} is computed."
    has_bias, kind = config.get("bias") is not False, _ACTIVATIONS[activation]
    return Dense(folder, sizes[0], sizes[1], has_bias, kind), ""


def _token_heads(path: Path) -> Iterator[TokenHead]:
    """Yield what single tokens go through, of the files that are there.

    Raises:
        CheckpointError: A file is damaged, or has other tensors than a product's.
    """
    for kind, name in TOKEN_HEADS.items():
        if not (path / name).exists():
            continue
        from headstock.checkpoint.torch_file import read_torch_file  # few models have one

        tensors = read_torch_file(path / name)
        weight = tensors.get("weight")
        if weight is None or len(weight.shape) != 2 or not tensors.keys() <= {"weight", "bias"}:
            raise _damaged(path / name, f"has the tensors {', '.join(tensors) or 'none'}")
        yield TokenHead(kind, name, weight.shape[1], weight.shape[0], "bias" in tensors)


def _module(file: Path, module: Any) -> tuple[str, str]:
    """Return the class and the folder of an entry of ``modules.json``."""
    entry = cast("dict[str, Any]", module) if isinstance(module, dict) else {}
    kind, folder = entry.get("type"), entry.get("path", "")
    if not isinstance(kind, str) or not isinstance(folder, str):
        raise _damaged(file, "has an entry without a type")
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise _damaged(file, f"has the path {folder!r}, which leaves the model's folder")
    return kind.rpartition(".")[2], folder


def _pool_kind(file: Path) -> tuple[PoolKind | None, str]:
    """Return the kind of pooling that a ``1_Pooling/config.json`` asks for, or what is wrong."""
    config = _object(file)
    if config.get("include_prompt") is False:
        return None, f"{file} has include_prompt false: vectors leave prompts out."
    named = config.get("pooling_mode")
    if named is not None:
        asked = [f"pooling_mode {named}"]
        found: list[PoolKind] = [_NAMES[named]] if named in _NAMES else []
    else:
        asked = [name for name in config if name.startswith("pooling_mode_") and config[name]]
        found = [_MODES[name] for name in asked if name in _MODES]
    if len(asked) != 1 or len(found) != 1:
        wanted = " and ".join(asked) or "no pooling"
        return None, f"{file} asks for {wanted}; one of {', '.join(_MODES)} is computed."
    return found[0], ""


def _prompts(file: Path) -> tuple[dict[str, str], str]:
    """Return the prompts by name, and the name of the default one."""
    config = _object(file)
    given: Any = config.get("prompts") or {}
    default = config.get("default_prompt_name") or ""
    if not isinstance(given, dict):
        raise _damaged(file, "has prompts that are no object")
    prompts = {str(name): text for name, text in cast("dict[Any, Any]", given).items()}
    if not all(isinstance(text, str) for text in prompts.values()):
        raise _damaged(file, "has a prompt that is not a text")
    if not isinstance(default, str) or (default and default not in prompts):
        raise _damaged(file, f"names the default prompt {default!r}, which it does not have")
    return prompts, default


def _max_length(file: Path) -> int | None:
    length = _object(file).get("max_seq_length")
    return length if isinstance(length, int) and not isinstance(length, bool) else None


def _object(file: Path) -> dict[str, Any]:
    try:
        return read_object_bounded(file)
    except FileNotFoundError:
        return {}


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} {what}.", remedy="Download the file again.")
