"""A step provider is asked once a width, and takes over what it says and nothing else."""

from __future__ import annotations

from dataclasses import replace

from headstock.ops.model_step import StepWidth
from headstock.runner.batch import StepShape
from headstock.runner.step import TakenSteps, describe_taken

DECODE = StepShape(
    num_tokens=4,
    num_rows=4,
    max_query=1,
    max_kv=64,
    max_draws=1,
    is_uniform=True,
    is_captured=False,
    has_tree=False,
)


class Few:
    """Takes over decode steps of up to eight rows."""

    def __init__(self) -> None:
        self.asked: list[StepWidth] = []

    def why_not(self, width: StepWidth) -> str | None:
        self.asked.append(width)
        if width.query != 1:
            return "only one token a row"
        return None if width.num_rows <= 8 else "only 8 rows"

    def run(self, ids_T, batch):
        return "taken"


def layers(ids_T, batch):
    return "layers"


def test_covered_widths_are_taken_over_and_others_are_not() -> None:
    taken = TakenSteps(Few(), layers)
    assert taken.of(DECODE)(None, None) == "taken"
    assert taken.of(replace(DECODE, num_tokens=9, num_rows=9))(None, None) == "layers"
    assert taken.of(replace(DECODE, num_tokens=8, max_query=2))(None, None) == "layers"
    assert taken.of(replace(DECODE, is_uniform=False))(None, None) == "layers"


def test_a_width_is_asked_once_whatever_else_differs() -> None:
    provider = Few()
    taken = TakenSteps(provider, layers)
    for max_kv in (64, 256, 1024):
        taken.of(replace(DECODE, max_kv=max_kv, has_tree=max_kv > 64))
    taken.of(replace(DECODE, has_adapters=True))
    assert provider.asked == [StepWidth(4, 4, 1), StepWidth(4, 4, 1, has_adapters=True)]


def test_what_is_left_to_the_layers_is_told_with_the_reason() -> None:
    text = describe_taken("few", Few(), num_rows=64, step_tokens=512, num_drafts=3)
    assert text == (
        "few for one decoding row; the layers for 64 decoding rows (only 8 rows),"
        " prompts (only one token a row), verification (only one token a row)"
    )
