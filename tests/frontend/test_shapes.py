"""Types of results: what constrains a text to them, and how it is read."""

import enum
import json
import re
from dataclasses import dataclass
from typing import Literal

import msgspec
import pydantic
import pytest

import headstock as hs
from headstock.frontend.backends import constraints
from headstock.frontend.shapes import schema_shape, shape_of


@dataclass
class City:
    name: str
    people: int


class Struct(msgspec.Struct):
    name: str
    people: int


class Model(pydantic.BaseModel):
    name: str
    people: int


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


PARIS = '{"name": "Paris", "people": 2000000}'


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (str, "x", "x"),
        (int, " 42", 42),
        (int, "-7", -7),
        (float, "-1.5e3", -1500.0),
        (bool, "true", True),
        (bool, " false", False),
        (Literal["a", 3], "3", 3),
        (Colour, "blue", Colour.BLUE),
        (re.compile("[ab]+"), "abba", "abba"),
        (City, PARIS, City("Paris", 2000000)),
        (Struct, PARIS, Struct("Paris", 2000000)),
        (Model, PARIS, Model(name="Paris", people=2000000)),
        (list[int], "[1, 2]", [1, 2]),
        (dict[str, City], f'{{"x": {PARIS}}}', {"x": City("Paris", 2000000)}),
    ],
)
def test_a_text_is_read_as_its_type(kind, text, value):
    assert shape_of(kind).read(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [(int, "x"), (float, ""), (bool, "maybe"), (Literal["a"], "b"), (Colour, "green"),
     (re.compile("a"), "aa"), (City, "{}"), (Model, "{}"), (list[int], '["x"]')],
)  # fmt: skip
def test_a_text_of_another_type_is_refused(kind, text):
    with pytest.raises(ValueError, match=r"."):
        shape_of(kind).read(text)


@pytest.mark.parametrize("kind", [City, Struct, Model])
def test_a_class_is_a_schema(kind):
    schema = constraints.inlined(json.loads(shape_of(kind).params["json_schema"]))
    assert schema["properties"]["people"]["type"] == "integer"
    assert set(schema["required"]) == {"name", "people"}


@pytest.mark.parametrize(("kind", "texts"), [(int, ["0", "-12"]), (float, ["1", "-0.5", "2e-7"])])
def test_patterns_of_numbers(kind, texts):
    pattern = shape_of(kind).params["regex"]
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert not any(re.fullmatch(pattern, text) for text in ("", "01", "a", "1 "))


def test_few_values_are_a_select():
    assert shape_of(bool).choices == ["true", "false"]
    assert shape_of(Literal["a", 3]).choices == ["a", "3"]


def test_a_schema_may_be_a_mapping_a_text_or_a_model():
    for schema in ({"type": "string"}, '{"type": "string"}'):
        assert json.loads(schema_shape(schema).params["json_schema"]) == {"type": "string"}
    assert "people" in schema_shape(Model).params["json_schema"]


def test_a_literal_is_selected_on_a_server(headstock_server):
    @hs.function
    def program(s):
        s += "Q:" + hs.gen("x", type=Literal["zz", "aaa"]) + hs.gen("y", type=bool)

    state = program.run(backend=headstock_server)
    assert state["x"] == "aaa"
    assert isinstance(state["y"], bool)


@pytest.mark.parametrize("kind", [City, Struct, Model])
def test_a_class_has_no_other_fields_than_its_own(kind):
    schema = constraints.inlined(json.loads(shape_of(kind).params["json_schema"]))
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("kind", [int, float, City, re.compile("a+")])
def test_a_type_goes_to_the_engine_as_a_grammar(headstock_server, kind):
    @hs.function
    def program(s):
        s += "Q:" + hs.gen("x", type=kind)

    with pytest.raises(hs.ProgramError, match=r"is not|No grammar provider|does not match"):
        program.run(backend=headstock_server)["x"]


def test_a_result_of_another_type_names_the_line(headstock_server):
    from headstock.frontend.expressions import Generate

    @hs.function
    def program(s):
        s += "ab" + Generate("x", {"max_new_tokens": 2, "ignore_eos": True}, shape_of(int))

    with pytest.raises(hs.ProgramError, match=r"'x' is not of type int.*'ab'") as caught:
        program.run(backend=headstock_server)["x"]
    assert caught.value.line.file == __file__


def test_schemas_of_other_endpoints():
    schema, is_wrapped = constraints.of_params(dict(shape_of(City).params))
    assert not is_wrapped
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert constraints.is_strict(schema)
    schema, is_wrapped = constraints.of_params(dict(shape_of(list[int]).params))
    assert is_wrapped
    assert schema["properties"]["value"]["type"] == "array"
    assert constraints.unwrap('{"value": [1, 2]}') == "[1, 2]"
    schema, is_wrapped = constraints.of_params({"regex": "a|b"})
    assert (schema["properties"]["value"]["pattern"], is_wrapped) == ("^(?:a|b)$", True)
