"""One completion while it is made: its journal, its text, its stops. No event loop here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headstock.errors import RequestError
from headstock.requests import FinishReason
from headstock.server.errors import reason_of
from headstock.text import StopMatcher, StopPattern, Tokenizer, make_detokenizer
from headstock.wire.messages import Ended, Submit
from headstock.wire.requests import TokenLogprobs


@dataclass(slots=True)
class LogprobColumns:
    """Logprobs at consecutive positions; columns as in ``steps.Logprobs``."""

    chosen: list[float] = field(default_factory=list)
    top_ids: list[list[int]] = field(default_factory=list)
    top: list[list[float]] = field(default_factory=list)
    asked: list[list[float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.chosen)

    def add(self, more: TokenLogprobs, count: int | None = None) -> None:
        """Append the first ``count`` positions of ``more``; None: all of them."""
        self.chosen += more.chosen[:count]
        self.top_ids += more.top_ids[:count]
        self.top += more.top[:count]
        self.asked += more.asked[:count]

    def keep(self, count: int) -> None:
        """Drop all but the first ``count`` positions."""
        for column in (self.chosen, self.top_ids, self.top, self.asked):
            del column[count:]


@dataclass(frozen=True, slots=True)
class End:
    """How a completion ended, and what serving it took."""

    reason: FinishReason
    num_retractions: int = 0
    queue_s: float = 0.0
    num_drafted: int = 0
    num_accepted: int = 0


@dataclass(slots=True)
class Delta:
    """What one token, or the end, added to a completion.

    Attributes:
        index: Which completion of its generation.
        text: What may be published now; "" while a character or a possible stop is incomplete.
        num_outputs: Output tokens of the completion with this one.
        end: Set on the last delta, and only there.
    """

    index: int
    text: str
    num_outputs: int
    end: End | None = None


class Completion:
    """What one ``Submit`` has brought so far.

    ``submit`` and ``output_ids`` are the journal: with them the request can be sent to another
    engine process, which goes on where this one stopped.

    Args:
        submit: What the engine was asked.
        index: Its place among the completions of its generation.
        tokenizer: None when token ids only are wanted.
        patterns: Its ``stop_regex``, compiled.
    """

    __slots__ = (
        "_detokenizer", "_has_hidden_stops", "_logprobs", "_prompt_logprobs", "_stop_ids", "_stops",
        "cached_tokens", "end", "ends", "index", "matched", "output_ids", "parts", "started_s",
        "submit", "vector", "weight_version",
    )  # fmt: skip

    def __init__(
        self,
        submit: Submit,
        index: int,
        tokenizer: Tokenizer | None,
        patterns: Sequence[StopPattern] = (),
    ) -> None:
        params = submit.params
        self.submit = submit
        self.index = index
        self.output_ids: list[int] = []
        self.parts: list[str] = []
        self.ends: list[int] | None = [] if submit.logprobs >= 0 else None
        """Characters complete after each output token, held back or not; with logprobs only."""
        self.cached_tokens = 0
        """Prompt tokens that came from the cache; known with the first token."""
        self.started_s: float | None = None
        """When its first token came, by the event loop's clock. Seconds."""
        self._logprobs: LogprobColumns | None = None
        self._prompt_logprobs: LogprobColumns | None = None
        self.matched: str | None = None
        """The stop string or text that ended it here, before the engine says so."""
        self.end: End | None = None
        self.vector = b""
        """What a pooled request yielded: little-endian float32."""
        self.weight_version = ""
        """What the weights are called that its tokens were computed with last."""
        self._stop_ids = frozenset(submit.stop_ids)
        self._has_hidden_stops = not params.no_stop_trim
        self._detokenizer = self._stops = None
        if tokenizer is not None and not submit.pool:
            self._detokenizer = make_detokenizer(
                tokenizer,
                prompt_ids=submit.prompt_ids,
                skip_special_tokens=params.skip_special_tokens,
            )
        if params.stop or patterns:
            self._stops = StopMatcher(params.stop, patterns, keep_match=params.no_stop_trim)

    @property
    def text(self) -> str:
        """Everything published so far."""
        return "".join(self.parts)

    @property
    def logprobs(self) -> LogprobColumns:
        """Of its output tokens, as far as they were asked for."""
        if self._logprobs is None:
            self._logprobs = LogprobColumns()
        return self._logprobs

    @property
    def prompt_logprobs(self) -> LogprobColumns:
        """Of its prompt's tokens, as far as they were asked for."""
        if self._prompt_logprobs is None:
            self._prompt_logprobs = LogprobColumns()
        return self._prompt_logprobs

    def forget_prompt_logprobs(self) -> None:
        """Drop those of the prompt: they are all computed again."""
        self._prompt_logprobs = None

    @property
    def is_deaf(self) -> bool:
        """Whether tokens that still come no longer count."""
        return self.matched is not None or self.end is not None

    def take(
        self, offset: int, token_ids: Sequence[int], logprobs: TokenLogprobs | None
    ) -> list[Delta]:
        """Take drawn tokens and return a delta for each that counts.

        Sets :attr:`matched` when the text meets a stop; the engine must then be sent a cut.

        Args:
            offset: Output index of the first one.
            token_ids: The tokens.
            logprobs: Theirs, if they were asked for.

        Raises:
            RequestError: Tokens were lost on the way.
        """
        if offset != len(self.output_ids):
            raise RequestError(
                f"Tokens came out of order: from {offset}, expected from {len(self.output_ids)}.",
                remedy="Try again.",
                code="internal_error",
            )
        deltas: list[Delta] = []
        has_text = self._detokenizer is not None
        text = ""
        for token_id in token_ids:
            self.output_ids.append(token_id)
            if has_text:
                text = self._text_of(token_id)
                self.parts.append(text)
            deltas.append(Delta(self.index, text, len(self.output_ids)))
            if self.matched is not None:
                break
        if logprobs is not None:
            self.logprobs.add(logprobs, len(deltas))
        return deltas

    def finish(self, ended: Ended) -> Delta:
        """Take the engine's last message and return the last delta."""
        text = self._rest() if self.matched is None else ""
        reason = ended.reason
        if self.matched is not None and reason.kind != "error":
            reason = FinishReason(kind="stop", matched=self.matched)
        self.cached_tokens = ended.cached_tokens
        end = End(
            reason,
            ended.num_retractions,
            ended.queue_s,
            num_drafted=ended.num_drafted,
            num_accepted=ended.num_accepted,
        )
        return self._close(text, end)

    def fail(self, error: RequestError) -> Delta:
        """End it with an error of our own, and return the last delta."""
        return self._close("", End(reason_of(error)))

    def _close(self, text: str, end: End) -> Delta:
        assert self.end is None, f"{self.submit.id} ended twice"
        self.end = end
        self.parts.append(text)
        return Delta(self.index, text, len(self.output_ids), end)

    def _text_of(self, token_id: int) -> str:
        if self._detokenizer is None or (self._has_hidden_stops and token_id in self._stop_ids):
            self._note_end("")
            return ""
        text = self._detokenizer.push(token_id)
        self._note_end(text)
        if self._stops is None:
            return text
        text, self.matched = self._stops.push(text)
        return text

    def _note_end(self, text: str) -> None:
        if self.ends is not None:
            self.ends.append((self.ends[-1] if self.ends else 0) + len(text))

    def _rest(self) -> str:
        """Return the text held back, now that no more comes."""
        text = "" if self._detokenizer is None else self._detokenizer.flush()
        if self._stops is None:
            return text
        text, self.matched = self._stops.push(text)
        return text if self.matched is not None else text + self._stops.flush()
