"""Programs that generate, as data: what one is, and how it runs over anything that generates.

A program is a list of steps on one or more states. The server runs it over its engine, the
language's back ends over any endpoint: one interpreter, so that both mean the same.
"""

from headstock.programs.branch import Branch, Message
from headstock.programs.check import UNLIMITED, Limits, check
from headstock.programs.events import Delta, Event, StepDone, StepReport
from headstock.programs.graph import (
    MAIN,
    Condition,
    Fork,
    Gen,
    Join,
    Media,
    Program,
    ReasoningMarks,
    Scope,
    Select,
    Start,
    Step,
    Text,
    Value,
    Var,
    When,
    numbered,
)
from headstock.programs.interpreter import Emit, Outcome, run_program
from headstock.programs.model import Chosen, Generated, Model

__all__ = [
    "MAIN",
    "UNLIMITED",
    "Branch",
    "Chosen",
    "Condition",
    "Delta",
    "Emit",
    "Event",
    "Fork",
    "Gen",
    "Generated",
    "Join",
    "Limits",
    "Media",
    "Message",
    "Model",
    "Outcome",
    "Program",
    "ReasoningMarks",
    "Scope",
    "Select",
    "Start",
    "Step",
    "StepDone",
    "StepReport",
    "Text",
    "Value",
    "Var",
    "When",
    "check",
    "numbered",
    "run_program",
]
