"""A cloud that is not there: botocore's calls, checked by its service models, answered here."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

Answer = dict[str, Any] | Callable[[dict[str, Any]], dict[str, Any]]


class Cloud:
    """Answers calls by name and keeps what was asked.

    It stands where botocore has validated and serialised a request and would send it; what it
    answers is validated against the operation's output.

    Args:
        answers: By operation name; a list is used up from its front, but for the last one.
    """

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.calls: list[tuple[str, dict[str, Any]]] = []

    @property
    def names(self) -> list[str]:
        """The operations that were called."""
        return [name for name, _ in self.calls]

    def asked(self, name: str) -> dict[str, Any]:
        """The parameters of the one call of ``name``."""
        (found,) = [parameters for called, parameters in self.calls if called == name]
        return found

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Stand in for the network in every client made from now on."""
        from botocore.client import BaseClient
        from botocore.endpoint import Endpoint

        patch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "none")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "none")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        make_call = BaseClient._make_api_call  # pyright: ignore[reportPrivateUsage]

        def note(client: BaseClient, name: str, parameters: dict[str, Any]) -> Any:
            self.calls.append((name, parameters))
            return make_call(client, name, parameters)

        def send(_: Endpoint, operation: Any, request: Any) -> tuple[Any, dict[str, Any]]:
            return self._answer(operation)

        patch.setattr(BaseClient, "_make_api_call", note)
        patch.setattr(Endpoint, "make_request", send)

    def _answer(self, operation: Any) -> tuple[Any, dict[str, Any]]:
        from botocore.validate import validate_parameters

        answer = self.answers.get(operation.name, {})
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if callable(answer):
            answer = answer(self.calls[-1][1])
        if "Error" in answer:
            return SimpleNamespace(status_code=400), {**answer, "ResponseMetadata": {}}
        shape = operation.output_shape
        streams = {name for name, value in answer.items() if hasattr(value, "read")}
        if shape is not None and not streams:
            validate_parameters(answer, shape)
        return SimpleNamespace(status_code=200), {**answer, "ResponseMetadata": {}}
