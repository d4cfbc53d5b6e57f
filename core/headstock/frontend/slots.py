"""Values that are still on their way."""

from __future__ import annotations

from concurrent.futures import Future

from headstock.frontend.errors import Line, ProgramError
from headstock.frontend.feed import Feed
from headstock.frontend.shapes import Shape
from headstock.programs import StepDone
from headstock.programs.graph import Value


class Slot:
    """The result of one gen or select.

    Args:
        name: Of the variable.
        line: Where the program says it.
        shape: How its text is read; None: as it is.
    """

    __slots__ = ("_length", "done", "line", "name", "pieces", "shape")

    def __init__(self, name: str, line: Line, shape: Shape | None) -> None:
        self.name = name
        self.line = line
        self.shape = shape
        self.done: Future[StepDone] = Future()
        self.pieces: Feed[str] = Feed()
        """Its text as it comes; of ``n`` texts the first."""
        self._length = 0

    def push(self, index: int, text: str) -> None:
        """Take a piece of text; only that of the first of ``n`` is passed on."""
        if index == 0:
            self._length += len(text)
            self.pieces.put(text)

    def finish(self, result: StepDone | Exception) -> None:
        """Take the result, or why there is none; only the first counts."""
        if self.done.done():
            return
        if isinstance(result, StepDone):
            if rest := result.texts[0][self._length :]:
                self.pieces.put(rest)
            self.done.set_result(result)
        else:
            self.done.set_exception(result)
            self.done.exception()  # it is raised where a variable is read
        self.pieces.end()

    def read(self, result: StepDone) -> object:
        """Return the value of a result.

        Raises:
            ProgramError: The text is not of the type that was asked for.
        """
        return self.read_value(result.value)

    def read_value(self, value: Value) -> object:
        """Return ``value`` as the type that was asked for.

        Raises:
            ProgramError: The text is not of that type.
        """
        if self.shape is None:
            return value
        if isinstance(value, list):
            return [self.read_value(item) for item in value]
        try:
            return self.shape.read(value)
        except ValueError as error:
            raise ProgramError(
                f"{self.name!r} is not of type {self.shape.name}: {error}. It is {value[:200]!r}.",
                remedy="Give it more tokens, or a model and server that keep to the type.",
                line=self.line,
                field=self.name,
                code="invalid_result",
            ) from error
