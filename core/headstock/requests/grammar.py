"""What the output of a request must look like."""

from __future__ import annotations

import msgspec

KINDS = ("json_schema", "json_object", "regex", "ebnf", "choice", "structural_tag", "lark")


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """A grammar as the caller described it; every route's fields end in this one type.

    Attributes:
        kind: One of :data:`KINDS`. ``ebnf`` is GBNF or Lark; ``lark`` is what this server wrote,
            with special tokens as ``<[id]>``.
        text: The schema, the choices (a JSON array) or the tags as JSON text, the pattern, or the
            grammar; "" for ``json_object``.
        field: What the caller calls it, for errors.
    """

    kind: str
    text: str = ""
    field: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What makes two grammars the same."""
        return self.kind, self.text
