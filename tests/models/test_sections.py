"""Configurations that lack all: every architecture says so in an error of ours."""

from __future__ import annotations

import contextlib

import pytest

from headstock.errors import HeadstockError
from tests.models.harness import REGISTRY, context


@pytest.mark.parametrize("name", REGISTRY.names)
def test_an_empty_configuration_is_a_clear_error(name: str) -> None:
    with contextlib.suppress(HeadstockError):  # others have a default for every key
        REGISTRY.load(name)(context(), {})


@pytest.mark.parametrize("name", [n for n in REGISTRY.names if "ConditionalGeneration" in n])
@pytest.mark.parametrize("given", [None, [], "text"])
def test_a_text_config_that_is_none_is_a_clear_error(name: str, given: object) -> None:
    with pytest.raises(HeadstockError) as caught:
        REGISTRY.load(name)(context(), {"text_config": given})
    assert caught.value.remedy
