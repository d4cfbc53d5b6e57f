"""Endpoints that know no programs: each step is a request, and the interpreter runs here."""

from __future__ import annotations

from typing import Any

from headstock.errors import RequestError
from headstock.frontend.backends.base import Emit
from headstock.frontend.backends.endpoint import Endpoint
from headstock.programs import UNLIMITED, Branch, Chosen, Gen, Generated, Program, Select, check
from headstock.programs.interpreter import run_program
from headstock.programs.model import OnText


class StepBackend:
    """Base of back ends that ask for a step at a time.

    Args:
        name: For people.
        endpoint: What they ask.
    """

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        self.name = name
        self._endpoint = endpoint

    async def run(self, program: Program, emit: Emit) -> None:
        """Run ``program``; see :class:`headstock.frontend.backends.base.Backend`."""
        check(program, UNLIMITED)
        await run_program(program, self, emit)

    async def generate(self, state: Branch, step: Gen, on_text: OnText | None) -> Generated:
        """Go on from ``state``; see :class:`headstock.programs.Model`."""
        raise NotImplementedError

    async def select(self, state: Branch, step: Select) -> Chosen:
        """Return which choice goes on best; see :class:`headstock.programs.Model`."""
        raise NotImplementedError

    async def flush_cache(self) -> None:
        """Refuse: the API has no such request.

        Raises:
            RequestError: Always.
        """
        raise RequestError(
            f"{self.name} cannot be asked to flush its cache.", remedy="Do it at the server."
        )

    async def server_info(self) -> dict[str, Any]:
        """Return what is known here."""
        return {"backend": self.name}

    async def close(self) -> None:
        """Hang up."""
        await self._endpoint.close()


def refuse_logprobs(step: Gen, name: str) -> None:
    """Refuse log probabilities, which an API does not tell in the form of ``/generate``.

    Raises:
        RequestError: The step asks for them.
    """
    if step.return_logprob:
        raise RequestError(
            f"{name} tells no log probabilities in this form.",
            remedy="Use a Headstock server or engine.",
            field="return_logprob",
            code="not_supported",
        )


def refuse_method(step: Select, name: str) -> None:
    """Refuse ways to compare choices that need their scores.

    Raises:
        RequestError: The step asks for one.
    """
    if step.method != "token_length_normalized":
        raise RequestError(
            f"{name} tells no likelihoods of choices; it is asked to name one.",
            remedy="Leave choices_method out.",
            field="method",
            code="not_supported",
        )
