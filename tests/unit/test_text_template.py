"""Chat templates get what models expect, and nothing they could do harm with."""

import pytest

from headstock.errors import ConfigError, RequestError
from headstock.text import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi"}]


def render(source, **more):
    return ChatTemplate(source, {"eos_token": "</s>"}).render(MESSAGES, **more)


def test_special_tokens_and_the_generation_prompt_are_there():
    source = "{{ messages[0].content }}{{ eos_token }}{% if add_generation_prompt %}>{% endif %}"
    assert render(source) == "hi</s>>"
    assert render(source, add_generation_prompt=False) == "hi</s>"


def test_json_is_written_as_models_saw_it():
    assert render("{{ {'a': 'é<b>'} | tojson }}") == '{"a": "é<b>"}'
    assert render("{{ {'a': 1} | tojson(indent=2) }}") == '{\n  "a": 1\n}'


def test_loop_controls_and_generation_marks_are_understood():
    source = "{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(source) == "01"
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}") == "hi"


def test_a_refusal_of_the_template_is_the_callers_error():
    with pytest.raises(RequestError, match="no system role") as caught:
        render("{{ raise_exception('no system role') }}")
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].missing.deeper }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_the_callers_error(source):
    with pytest.raises(RequestError):
        render(source)


def test_a_request_cannot_set_what_the_server_sets():
    with pytest.raises(RequestError) as caught:
        render("x", extra={"messages": []})
    assert caught.value.field == "chat_template_kwargs"
    assert render("{{ enable_thinking }}", extra={"enable_thinking": False}) == "False"


def test_a_template_that_does_not_compile_is_the_operators_error():
    with pytest.raises(ConfigError, match="line 1"):
        ChatTemplate("{% if %}", {})
