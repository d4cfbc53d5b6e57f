"""Grammars by the llguidance library: JSON schemas, patterns, context-free grammars.

Source: llguidance 1.9, ``LLMatcher`` and ``LLExecutor``.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Sequence
from typing import Any, cast

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from headstock.errors import RequestError
from headstock.requests.grammar import Grammar
from headstock.structured.provider import CompiledGrammar, Matcher, Vocabulary, invalid
from headstock.structured.rules import WHITESPACE, quoted
from headstock.structured.tags import tags_to_lark

_DRAWN = re.compile(r"[\^~|\- ]+|\d+ \|.*")
"""Lines of a reason that show where in the grammar it went wrong."""
MAX_REASON = 400
"""Characters of the library's reason that an error repeats."""
_LIMIT_WORDS = ("too large", "too complex", "limit", "fuel", "too many", "recursion")


class _Tokens:
    """A vocabulary as the library wants it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.tokens
        self.special_token_ids = vocabulary.special_ids
        self.eos_token_id = vocabulary.eos_ids[0] if vocabulary.eos_ids else None
        self.bos_token_id = None
        self._encode = vocabulary.encode
        special = set(vocabulary.special_ids)
        self._ids = {
            token: index
            for index, token in enumerate(vocabulary.tokens)
            if token and index not in special
        }
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes | str) -> list[int]:
        """Return ids of ``text``; parts that are no token are left out."""
        raw = text.encode() if isinstance(text, str) else text
        if self._encode is not None:
            return self._encode(raw.decode("utf-8", "replace"))
        ids: list[int] = []
        begin = 0
        while begin < len(raw):
            for size in range(min(self._longest, len(raw) - begin), 0, -1):
                index = self._ids.get(raw[begin : begin + size])
                if index is not None:
                    ids.append(index)
                    break
            else:
                size = 1
            begin += size
        return ids


class GuidanceMatcher:
    """One output's place in its grammar."""

    __slots__ = ("inner",)

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self.inner = inner

    @property
    def error(self) -> str:
        """Why it cannot go on; "" when it can."""
        return _first_line(self.inner.get_error()) if self.inner.is_error() else ""

    @property
    def can_end(self) -> bool:
        """Whether the output may end here."""
        return self.inner.is_accepting()

    def advance(self, token_ids: Sequence[int]) -> int:
        """Take in ``token_ids``; return how many the grammar allows."""
        return self.inner.try_consume_tokens(list(token_ids))

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` ids."""
        if count:
            self.inner.rollback(count)

    def forced(self) -> list[int]:
        """Return ids that must come next."""
        return self.inner.compute_ff_tokens()


class GuidanceGrammar:
    """A compiled grammar; requests get copies."""

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self._inner = inner

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning of an output."""
        return GuidanceMatcher(self._inner.deep_copy())


class GuidanceProvider:
    """Compiles by llguidance."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._mask_bytes = vocabulary.mask_bytes
        self._special = {
            vocabulary.tokens[index].decode("utf-8", "replace"): index
            for index in vocabulary.special_ids
        }
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Tokens(vocabulary)), eos_token=vocabulary.eos_ids or None
        )
        # Errors without the parser's state: callers must not see each other's ids in a log.
        self._limits = llguidance.LLParserLimits(verbose_errors=False)
        self._executor: llguidance.LLExecutor | None = None

    def translate(self, grammar: Grammar) -> str:
        """Return ``grammar`` in the library's own form."""
        try:
            return self._translate(grammar)
        except RequestError:
            raise
        except Exception as error:  # whatever the library's converters trip over
            raise invalid(grammar.kind, _first_line(str(error))) from error

    def _translate(self, grammar: Grammar) -> str:
        make = llguidance.LLMatcher
        defaults: Any = {"whitespace_pattern": WHITESPACE}
        match grammar.kind:
            case "json_object":
                return make.grammar_from_json_schema({"type": "object"}, defaults=defaults)
            case "json_schema":
                text = "{}" if grammar.text.strip() == "true" else grammar.text
                return make.grammar_from_json_schema(text, defaults=defaults)
            case "regex":
                return make.grammar_from_regex(grammar.text)
            case "ebnf":
                return make.grammar_from_lark(any_to_lark(grammar.text))
            case "lark":
                return make.grammar_from_lark(grammar.text)
            case "choice":
                choices = dict.fromkeys(cast("list[str]", json.loads(grammar.text)))
                return make.grammar_from_lark("start: " + " | ".join(map(quoted, choices)))
            case "structural_tag":
                tags = cast("dict[str, Any]", json.loads(grammar.text))
                return make.grammar_from_lark(tags_to_lark(tags, self._special))
            case _:
                raise AssertionError(f"no kind of grammar: {grammar.kind}")

    def compile(self, text: str) -> CompiledGrammar:
        """Compile what :meth:`translate` returned. Lets other threads run meanwhile."""
        matcher = llguidance.LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        # The first mask compiles part of the lexer, too: have that happen under the limits.
        matcher.compute_bitmask()
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        return GuidanceGrammar(matcher)

    def masks(self, matchers: Sequence[Matcher]) -> list[bytearray]:
        """Return the masks of ``matchers``, computed by several threads."""
        inner = [cast("GuidanceMatcher", matcher).inner for matcher in matchers]
        size = self._mask_bytes
        if len(inner) == 1:
            # The library's own are a word longer where the ids fill the last one.
            return [bytearray(inner[0].compute_bitmask()[:size])]
        if self._executor is None:
            self._executor = llguidance.LLExecutor()
        words = bytearray(size * len(inner))
        place = ctypes.addressof(ctypes.c_char.from_buffer(words))
        pairs = [(matcher, index) for index, matcher in enumerate(inner)]
        self._executor.unsafe_compute_mask_ptr(pairs, place, size, len(inner))
        return [words[index * size : (index + 1) * size] for index in range(len(inner))]


def open_llguidance(vocabulary: Vocabulary) -> GuidanceProvider:
    """Return the provider for ``vocabulary``."""
    return GuidanceProvider(vocabulary)


def _refusal(reason: str) -> RequestError:
    text = _first_line(reason)
    is_large = any(word in text.lower() for word in _LIMIT_WORDS)
    return RequestError(
        f"The grammar is refused: {text}",
        remedy="Use a smaller one." if is_large else "Change it, or leave it out.",
        code="grammar_too_complex" if is_large else "invalid_grammar",
    )


def _first_line(reason: str) -> str:
    """Return the library's reason on one line, without its drawings, shortened."""
    lines = [line.strip() for line in reason.split("<state>")[0].splitlines()]
    kept = [line for line in lines if line and not _DRAWN.fullmatch(line)]
    text = " ".join(kept) or "no reason is given"
    text = text if len(text) <= MAX_REASON else text[:MAX_REASON] + "…"
    return text if text.endswith((".", "…")) else text + "."
