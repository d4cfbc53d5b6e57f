"""dspy."""

import json

import dspy
from steps import MODEL, URL, attempt

lm = dspy.LM(
    f"hosted_vllm/{MODEL}", api_base=URL + "/v1", api_key="none", max_tokens=60, cache=False,
    num_retries=0, temperature=0.0,
)  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


def plain():
    assert lm("Say hello.")[0]


def predict():
    """A model this small does not keep to dspy's own format: it is enough that it is asked."""
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        try:
            dspy.Predict("thing -> colour")(thing="the sky")
        except dspy.utils.exceptions.AdapterParseError as error:
            assert error.lm_response


def schema():
    wanted = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA}}
    told = lm("Is the sky red or blue?", response_format=wanted)[0]
    assert json.loads(told)["colour"] in ("red", "blue"), told


attempt("LM", plain)
attempt("Predict", predict)
attempt("LM with a schema", schema)
