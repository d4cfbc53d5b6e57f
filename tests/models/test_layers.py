"""A layer that is not complete is named when the model is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from torch import Tensor

from headstock.errors import PluginError
from headstock.graph.build import Model, build_model
from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf, Module
from tests.models.harness import context


class Scale(Layer):
    def leaves(self) -> Sequence[Leaf]:
        return []

    def allocate(self, layouts: Mapping[str, Any]) -> None:
        pass

    def load(self, name: str, source: Any) -> None:
        pass

    def forward(self, x_TD: Tensor) -> Tensor:
        return x_TD


class Whole(Scale):
    @property
    def num_bytes(self) -> int:
        return 0


class Part(Module):
    def __init__(self, layer: Layer) -> None:
        self.scale = layer


def model_of(layer: Layer) -> Any:
    class Odd(Model):
        def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
            self.model = Part(layer)

    return Odd


def test_a_layer_without_num_bytes_is_named_when_the_model_is_built() -> None:
    with pytest.raises(PluginError) as caught:
        build_model(model_of(Scale()), context(), {})
    assert "Scale at 'model' does not define num_bytes" in caught.value.problem
    assert "num_bytes is a property" in caught.value.remedy


def test_all_that_a_layer_lacks_is_named() -> None:
    class Empty(Layer):
        pass

    with pytest.raises(PluginError, match=r"leaves, allocate, load, num_bytes\."):
        build_model(model_of(Empty()), context(), {})


def test_a_complete_layer_is_built() -> None:
    assert build_model(model_of(Whole()), context(), {})
