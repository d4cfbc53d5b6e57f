"""What compiles grammars: the interface that a plugin implements, and where it says so."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from headstock.errors import PluginError, RequestError
from headstock.plugins.places import Places
from headstock.requests.grammar import KINDS, Grammar


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids of a model, as a grammar sees them.

    Attributes:
        tokens: The bytes each id stands for, b"" where it stands for none; as many as the model
            has ids.
        special_ids: Ids that are no text: text never matches them.
        eos_ids: Those of them that end an output.
        encode: Text to ids as the tokenizer does it; None: greedily, longest token first.
    """

    tokens: list[bytes]
    special_ids: list[int]
    eos_ids: list[int]
    encode: Callable[[str], list[int]] | None = None

    @property
    def mask_bytes(self) -> int:
        """Size of a mask: a bit an id, in words of 32 bits."""
        return -(-len(self.tokens) // 32) * 4


class Matcher(Protocol):
    """Where one output stands in its grammar. Used by one thread at a time."""

    @property
    def error(self) -> str:
        """Why it cannot go on, such as a limit that was reached; "" when it can."""
        ...

    @property
    def can_end(self) -> bool:
        """Whether the output may end here."""
        ...

    def advance(self, token_ids: Sequence[int]) -> int:
        """Take in ``token_ids``; return how many the grammar allows, the rest is not taken."""
        ...

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` ids."""
        ...

    def forced(self) -> list[int]:
        """Return ids that must come next whatever the model wants; often none."""
        ...


class CompiledGrammar(Protocol):
    """A grammar ready to be matched, shared by requests."""

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning of an output."""
        ...


class GrammarProvider(Protocol):
    """Compiles grammars for one vocabulary."""

    def translate(self, grammar: Grammar) -> str:
        """Return the provider's own text of ``grammar``. Called under limits only.

        Raises:
            RequestError: The grammar is wrong (``invalid_grammar``).
        """
        ...

    def compile(self, text: str) -> CompiledGrammar:
        """Compile what :meth:`translate` returned.

        Called under limits first; in the engine only with a text that has passed them.

        Raises:
            RequestError: The grammar is wrong, or asks what the provider cannot do
                (``invalid_grammar``), or is too large (``grammar_too_complex``).
        """
        ...

    def masks(self, matchers: Sequence[Matcher]) -> list[bytearray]:
        """Return which ids may come next for each of ``matchers``, all of this provider.

        A bit an id, lowest first, in little-endian words of 32 bits; whether EOS ids are among
        them does not matter.
        """
        ...


class ProviderError(RuntimeError):
    """A provider failed; its cause is what it raised."""


Open = Callable[[Vocabulary], GrammarProvider]


class GrammarRegistry(Places):
    """The providers that plugins named, by what ``--grammar-backend`` calls them.

    The function at a place takes a :class:`Vocabulary` and returns a :class:`GrammarProvider`. It
    is imported when the first grammar comes, in the engine and in the process that compiles. The
    first that is named is the default.
    """

    __slots__ = ()
    kind = "grammar provider"


def open_provider(place: str, vocabulary: Vocabulary) -> GrammarProvider:
    """Import the provider at ``place`` and open it.

    Raises:
        PluginError: It cannot be imported.
    """
    module, _, function = place.partition(":")
    try:
        opener: Open = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"Grammar provider {place} cannot be imported: {error}.",
            remedy="Install it again, or choose another by --grammar-backend.",
        ) from error
    return opener(vocabulary)


def invalid(grammar_kind: str, reason: str) -> RequestError:
    """Return the error for a grammar that is wrong or not supported."""
    assert grammar_kind in KINDS, f"no kind of grammar: {grammar_kind}"
    return RequestError(
        f"The {grammar_kind} cannot be used: {reason}",
        remedy="See docs/structured-outputs.md for what is supported.",
        code="invalid_grammar",
    )
