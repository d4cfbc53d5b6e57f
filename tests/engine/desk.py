"""Who talks to an engine without a process: says messages, keeps what comes, takes turns."""

from __future__ import annotations

from headstock.engine import Engine
from headstock.errors import CheckpointError
from headstock.requests import SamplingParams, TokenIds
from headstock.wire.messages import FromEngine, Submit, ToEngine, Tokens


class ToyWeights:
    """Loads in three parts."""

    def __init__(self, engine_steps: list[int]) -> None:
        self.parts = 0
        self.begun: list[str] = []
        self._steps = engine_steps
        self.seen_steps: list[int] = []

    def begin(self, path: str) -> None:
        if path == "/other":
            raise CheckpointError("It is of another model.", remedy="Take this one's.")
        self.begun.append(path)
        self.parts = 3

    def advance(self, seconds: float) -> bool:
        self.seen_steps.append(len(self._steps))
        self.parts -= 1
        if self.begun[-1] == "/torn":
            raise OSError("the file ends early")
        return self.parts == 0

    def read(self, name: str, num_rows: int) -> tuple[list[int], bytes]:
        if name != "norm":
            raise CheckpointError("There is none.", remedy="Take another.")
        return [num_rows], bytes(4 * num_rows)


class Desk:
    """Has an engine, and all that it has said."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.heard: list[FromEngine] = []

    def say(self, *messages: ToEngine) -> None:
        self.heard += self.engine.receive(messages)

    def submit(self, name: str, count: int = 30) -> None:
        params = SamplingParams(max_new_tokens=count, temperature=0.0, sampling_seed=0)
        self.say(Submit(id=name, prompt_ids=TokenIds(range(1, 30)), params=params))

    def turn(self, count: int = 1) -> None:
        for _ in range(count):
            if self.engine.is_preparing:
                self.heard += self.engine.take_prepared()
            if self.engine.has_work:
                self.heard += self.engine.step()

    def of(self, kind: type) -> list:
        return [message for message in self.heard if isinstance(message, kind)]

    def drawn(self, name: str) -> list[int]:
        ids: list[int] = []
        for tokens in self.of(Tokens):
            begin = 0
            for request, count in zip(tokens.ids, tokens.counts, strict=True):
                if request == name:
                    ids += tokens.token_ids[begin : begin + count]
                begin += count
        return ids
