"""Parts reasoning from the answer in a generated text."""

from __future__ import annotations

from headstock.programs.graph import ReasoningMarks


def split(text: str, marks: ReasoningMarks) -> tuple[str, str]:
    """Return answer and reasoning.

    A text that ends while it reasons is all reasoning.
    """
    before, begin, rest = text.partition(marks.begin)
    if not begin or (marks.is_open and marks.end in before):
        if not marks.is_open:
            return text, ""
        before, rest = "", text
    reasoning, _, answer = rest.partition(marks.end)
    return (before + answer.lstrip("\n")), reasoning.strip("\n")
