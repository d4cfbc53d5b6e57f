"""How text is split into words before byte-level BPE, by the names that GGUF files use.

Source: the patterns are those of the tokenizers that the names stand for; which names go together,
and which of them begin a text with BOS, is llama.cpp's table in ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

from dataclasses import dataclass

_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST_WITH_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASED = f"{_BEFORE}{_UPPER}*{_LOWER}+@|{_BEFORE}{_UPPER}+{_LOWER}*@"

LLAMA3 = _LETTERS + r"|\p{N}{1,3}" + _REST
QWEN2 = _LETTERS + r"|\p{N}" + _REST
TEKKEN = _CASED.replace("@", "") + r"|\p{N}" + _REST_WITH_SLASH
_HAN = r"&&[^\p{Han}]"
KIMI = (
    r"[\p{Han}]+|"
    + (_CASED.replace(r"\p{M}]", rf"\p{{M}}{_HAN}]").replace("@", f"{_SUFFIXES}?"))
    + r"|\p{N}{1,3}"
    + _REST
)
GPT4O = _CASED.replace("@", f"{_SUFFIXES}?") + r"|\p{N}{1,3}" + _REST_WITH_SLASH


@dataclass(frozen=True, slots=True)
class Split:
    """A way to split.

    Attributes:
        pattern: What a word is; "": as GPT-2 has it.
        parts_digits: Whether each digit stands alone.
        ignores_merges: Whether a word of the vocabulary is taken whole.
        adds_bos: Whether a text begins with BOS when the file does not say.
        composes: Whether characters are composed first (NFC).
    """

    pattern: str = ""
    parts_digits: bool = False
    ignores_merges: bool = False
    adds_bos: bool = False
    composes: bool = False


_GROUPS = (
    (
        Split(),
        ("", "default", "gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es",
         "jina-v2-de", "a.x-4.0", "mellum", "modern-bert", "exaone4"),
    ),
    (
        Split(LLAMA3, ignores_merges=True, adds_bos=True),
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
         "jina-v5-nano"),
    ),
    (Split(LLAMA3), ("smaug-bpe", "dbrx")),
    (Split(QWEN2, composes=True), ("qwen2", "megrez", "kormo", "f2llmv2")),
    (Split(QWEN2), ("deepseek-r1-qwen", "stablelm2", "hunyuan")),
    (Split(TEKKEN, ignores_merges=True, adds_bos=True), ("tekken",)),
    (Split(GPT4O), ("gpt-4o", "llama4", "kanana2", "talkie")),
    (Split(parts_digits=True), ("smollm",)),
)  # fmt: skip
SPLITS = {name: split for split, names in _GROUPS for name in names}
"""By the value of ``tokenizer.ggml.pre``."""
