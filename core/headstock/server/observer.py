"""What the front door reports to the metrics."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Hears of each request; metrics are one."""

    def accepted(self, num_prompt_tokens: int) -> None:
        """A completion was sent to the engine."""
        ...

    def first_token(self, seconds: float) -> None:
        """The first token of a completion came ``seconds`` after its request."""
        ...

    def next_tokens(self, count: int, seconds: float) -> None:
        """``count`` more tokens of a completion came together, ``seconds`` after the last ones."""
        ...

    def queued(self, seconds: float) -> None:
        """A completion waited so long for admission."""
        ...

    def ended(self, kind: str, num_outputs: int, total_s: float, decode_s: float) -> None:
        """A completion is over.

        Args:
            kind: Of its finish reason.
            num_outputs: Tokens it made.
            total_s: From the request to the end. Seconds.
            decode_s: From the first token to the end. Seconds.
        """
        ...


class NoObserver:
    """Counts nothing."""

    def accepted(self, num_prompt_tokens: int) -> None:
        """Do nothing."""

    def first_token(self, seconds: float) -> None:
        """Do nothing."""

    def next_tokens(self, count: int, seconds: float) -> None:
        """Do nothing."""

    def queued(self, seconds: float) -> None:
        """Do nothing."""

    def ended(self, kind: str, num_outputs: int, total_s: float, decode_s: float) -> None:
        """Do nothing."""
