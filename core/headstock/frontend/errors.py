"""Errors of programs, which name the program's own line."""

from __future__ import annotations

import linecache
import sys
from dataclasses import dataclass

from headstock.errors import RequestError

_PACKAGE = __name__.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a program.

    Attributes:
        file: Its file.
        number: From 1.
        function: In which it stands.
    """

    file: str
    number: int
    function: str

    @property
    def source(self) -> str:
        """What stands there; "" where that is not known."""
        return linecache.getline(self.file, self.number).strip()

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


def caller() -> Line:
    """Return the line outside of this package that is being executed."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        frame = frame.f_back
    return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


class ProgramError(RequestError):
    """A step of a program is at fault, or could not be served.

    Args:
        problem: What is wrong.
        line: Where the program says it; None: not in the program.

    Attributes:
        line: As given.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str,
        line: Line | None = None,
        field: str | None = None,
        code: str = "invalid_program",
    ) -> None:
        if line is not None:
            source = line.source
            where = f"{line}, in {line.function}"
            problem = f"{where}: {problem}" + (f"\n     {source}" if source else "")
        super().__init__(problem, remedy=remedy, field=field, code=code)
        self.line = line


def located(error: RequestError, line: Line | None) -> ProgramError:
    """Return ``error`` as one that names the line of the step at fault."""
    if isinstance(error, ProgramError):
        return error
    found = ProgramError(
        error.problem, remedy=error.remedy, line=line, field=error.field, code=error.code
    )
    found.__cause__ = error
    return found
