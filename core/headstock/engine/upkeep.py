"""What operators have done between two steps: other weights, a trace of what steps spend."""

from __future__ import annotations

import logging
from typing import Protocol

from headstock.errors import HeadstockError
from headstock.wire.messages import (
    LoadWeights,
    ReadWeight,
    StartProfile,
    StopProfile,
    UpkeepReply,
    WeightRows,
)

LOAD_S = 0.5
"""How long weights are loaded before the engine looks at its mailbox again. Seconds."""
FROM_FOLDER = "Read it from the model's folder, which GET /model_info names."
log = logging.getLogger(__name__)


class Weights(Protocol):
    """Puts other values in the places of a model's weights; ``assemble.InPlaceWeights`` is one."""

    def begin(self, path: str) -> None:
        """Open a checkpoint, and compare it with the model.

        Raises:
            HeadstockError: It is not for this model; nothing has changed.
        """
        ...

    def advance(self, seconds: float) -> bool:
        """Load for so long; returns whether that was all. Should it raise, the model is lost."""
        ...

    def read(self, name: str, num_rows: int) -> tuple[list[int], bytes]:
        """Return the shape and the elements of the first rows of a weight, as float32.

        Raises:
            HeadstockError: The model has none of that name, or it cannot be read.
        """
        ...


class Profiler(Protocol):
    """Records what this process does; ``assemble.TorchProfiler`` is one."""

    def start(self, folder: str, *, has_stacks: bool, has_shapes: bool) -> str:
        """Begin; returns the path of the file to be.

        Raises:
            HeadstockError: Nothing can be written there.
        """
        ...

    def stop(self) -> None:
        """End, and write the file.

        Raises:
            HeadstockError: It cannot be written.
        """
        ...


class WeightDesk:
    """Loads weights a part at a time, while no step is computed.

    Args:
        weights: The model's; None: they cannot change.
        why_not: What is said then.
    """

    def __init__(self, weights: Weights | None, why_not: str) -> None:
        self._weights, self._why_not = weights, why_not
        self._call = self._count = 0
        self.is_loading = False

    def begin(self, message: LoadWeights, num_running: int) -> UpkeepReply | None:
        """Open the checkpoint; returns why that is refused, or None."""
        problem, remedy = "", "Start another server on the new weights, then end this one."
        if self._weights is None:
            problem = self._why_not
        elif self.is_loading:
            problem, remedy = "Other weights are being loaded.", "Wait until they are."
        else:
            try:
                self._weights.begin(message.path)
            except HeadstockError as error:
                problem, remedy = error.problem, error.remedy
        if problem:
            return UpkeepReply(call=message.call, problem=problem, remedy=remedy)
        self._call, self._count, self.is_loading = message.call, num_running, True
        return None

    def advance(self) -> UpkeepReply | None:
        """Load a part; returns the answer once all is loaded."""
        assert self._weights is not None, "nothing is being loaded"
        if not self._weights.advance(LOAD_S):
            return None
        self.is_loading = False
        return UpkeepReply(call=self._call, count=self._count)

    def read(self, message: ReadWeight) -> WeightRows:
        """Read a weight back from the device."""
        problem, remedy = "", FROM_FOLDER
        if self._weights is None:
            problem = self._why_not
        elif self.is_loading:
            problem, remedy = "Other weights are being loaded.", "Wait until they are."
        else:
            try:
                shape, values = self._weights.read(message.name, message.num_rows)
            except HeadstockError as error:
                problem, remedy = error.problem, error.remedy
            else:
                return WeightRows(call=message.call, shape=shape, values=values)
        return WeightRows(call=message.call, problem=problem, remedy=remedy)


class ProfileDesk:
    """Has steps recorded, so many at most.

    Args:
        profiler: Records steps; None: profiles are refused.
    """

    def __init__(self, profiler: Profiler | None) -> None:
        self._profiler = profiler
        self._begin_step = self._end_step = 0
        self._path = ""
        self.is_running = False

    def start(self, message: StartProfile, step: int) -> UpkeepReply:
        """Begin; ``step``: steps that the engine has settled so far."""
        call = message.call
        if self._profiler is None:
            return UpkeepReply(call=call, problem="This engine has no profiler.")
        if self.is_running:
            remedy = "End it with /stop_profile."
            return UpkeepReply(call=call, problem="A profile is being recorded.", remedy=remedy)
        try:
            self._path = self._profiler.start(
                message.folder, has_stacks=message.has_stacks, has_shapes=message.has_shapes
            )
        except HeadstockError as error:
            return UpkeepReply(call=call, problem=error.problem, remedy=error.remedy)
        self._begin_step, self._end_step = step, step + message.num_steps
        self.is_running = True
        return UpkeepReply(call=call, path=self._path)

    def stop(self, message: StopProfile, step: int) -> UpkeepReply:
        """End, and write the file."""
        call = message.call
        if not self.is_running:
            if not self._path:
                remedy = "Begin one with /start_profile."
                return UpkeepReply(call=call, problem="No profile was recorded.", remedy=remedy)
            return UpkeepReply(call=call, path=self._path, count=self._end_step - self._begin_step)
        try:
            self._write(step)
        except HeadstockError as error:
            self._path = ""
            return UpkeepReply(call=call, problem=error.problem, remedy=error.remedy)
        return UpkeepReply(call=call, path=self._path, count=step - self._begin_step)

    def look(self, step: int) -> None:
        """End the recording if it has all its steps."""
        if step < self._end_step:
            return
        try:
            self._write(step)
        except HeadstockError as error:
            log.error("The profile is lost: %s", error.problem)
            self._path = ""

    def _write(self, step: int) -> None:
        assert self._profiler is not None, "a profile runs without a profiler"
        self.is_running, self._end_step = False, step
        self._profiler.stop()
        log.info("%d steps are recorded in %s", step - self._begin_step, self._path)
