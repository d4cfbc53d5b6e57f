"""How long a model may think before it answers: the caller's number, as the engine reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from headstock.errors import RequestError
from headstock.server.speech import has_begun
from headstock.text import Tokenizer
from headstock.text.parsers import ReasoningFormat
from headstock.wire.requests import ThoughtLimit

BUDGETS = ("thinking_budget", "thinking_token_budget", "max_thinking_tokens")
"""Names that other servers have for it."""


class Thinking(msgspec.Struct):
    """Whether a model that can think before it answers does so, and for how many tokens."""

    type: str
    budget_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtBudget:
    """What a caller allows.

    Attributes:
        tokens: Of thoughts; then they end.
        reasoning: How the model marks them.
        field: What the caller calls it.
        is_target: Whether it is passed over where it cannot be enforced.
        is_continued: Whether the prompt ends with the beginning of the answer.
    """

    tokens: int
    reasoning: ReasoningFormat
    field: str
    is_target: bool = False
    is_continued: bool = False

    def limit(self, prompt_ids: Sequence[int], tokenizer: Tokenizer) -> ThoughtLimit | None:
        """Return the budget as ids; None: it is a target that cannot be enforced.

        Raises:
            RequestError: The mark that ends thoughts is no token of this model's.
        """
        end_id = tokenizer.token_id(self.reasoning.end)
        if end_id is None:
            if self.is_target:
                return None
            raise RequestError(
                f"{self.field} cannot be enforced: {self.reasoning.end} is not one of this model's"
                " tokens.",
                remedy="Leave it out, or lower the limit of the whole answer.",
                field=self.field,
                code="not_supported",
            )
        return ThoughtLimit(
            self.tokens,
            end_id,
            tokenizer.encode(self.reasoning.begin, add_special_tokens=False),
            has_begun(self.reasoning, prompt_ids, tokenizer, is_continued=self.is_continued),
        )


def read_budget(
    reasoning: ReasoningFormat | None,
    given: Sequence[tuple[str, int | None]],
    thinking: Thinking | None = None,
    *,
    is_continued: bool,
) -> ThoughtBudget | None:
    """Return the budget that a caller set, or None.

    Args:
        reasoning: How the model marks its thoughts; None: it has none.
        given: Names under which it may come, and what came.
        thinking: It may come in this, too.
        is_continued: Whether the prompt ends with the beginning of the answer.

    Raises:
        RequestError: The model does not think, or two names are set.
    """
    inner = thinking.budget_tokens if thinking is not None and thinking.type != "disabled" else None
    found = [(name, value) for name, value in [("thinking", inner), *given] if value is not None]
    if not found:
        return None
    field, tokens = found[0]
    if len(found) > 1:
        raise RequestError(
            f"{field} and {found[1][0]} are both set.", remedy="Set one.", field=found[1][0]
        )
    if reasoning is None:
        raise RequestError(
            f"{field} is set, and the model's chat template has no thoughts.",
            remedy="Leave it out.",
            field=field,
            code="not_supported",
        )
    return ThoughtBudget(tokens=tokens, reasoning=reasoning, field=field, is_continued=is_continued)
