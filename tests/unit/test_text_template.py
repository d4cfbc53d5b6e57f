"""Chat templates get what models expect, and nothing they could do harm with."""

import errno
import time
from pathlib import Path

import pytest

from headstock.errors import ConfigError, RequestError
from headstock.text import ChatTemplate
from headstock.text.render_pool import RenderPool

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


HOSTILE = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "doubles": "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "repeats": "{{ messages[0].content * 2000000000 }}",
    "powers": "{{ 10 ** (10 ** 9 + messages | length) }}",
    "nests": "{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "joins": "{{ range(99999) | map('string') | join(messages[0].content * 99999) }}",
    "pads": "{{ '%2000000000d' | format(1) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_never_ends_or_fills_memory_ends_within_its_limits(name):
    template = ChatTemplate(HOSTILE[name], {})
    begun = time.monotonic()
    with pytest.raises(RequestError) as caught:
        template.render(MESSAGES)
    assert time.monotonic() - begun < 5  # 0.5 s of a processor that others use too
    assert caught.value.code in ("template_exhausted", "template_failed")


@pytest.mark.parametrize(
    "source", ["{{ 10 ** (10 ** 9) }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + "}}"]
)
def test_a_template_that_is_costly_to_compile_is_the_operators_error(source):
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"0\.5 s"):
        ChatTemplate(source, {})
    assert time.monotonic() - begun < 5


def test_a_template_serves_on_after_a_rendering_was_ended():
    source = (
        "{% for i in range(messages[0].n) %}{% for j in range(9999) %}{% endfor %}{% endfor %}k"
    )
    template = ChatTemplate(source, {})
    for n, is_fine in ((1, True), (99999, False), (1, True)):
        if is_fine:
            assert template.render([{"n": n}]) == "k"
        else:
            with pytest.raises(RequestError, match=r"over 0\.5 s"):
                template.render([{"n": n}])


def test_a_lost_process_is_replaced_and_none_is_left_behind():
    pool = RenderPool("{{ messages }}")
    assert pool.render({"messages": 1}) == {"text": "1"}
    first = pool._pool._idle.get_nowait()
    process = first._process._process
    pid = process.pid
    pool._pool._idle.put_nowait(first)
    process.kill()
    process.wait()
    assert pool.render({"messages": 3}) == {"text": "3"}
    pool.close()
    assert not Path(f"/proc/{pid}").exists()


def test_numbers_and_words_reach_the_template_as_they_were_sent():
    value = {"a": [1, 2.5, None, True, 10**40, "é\n\u2028"], "b": {}}
    assert render("{{ value }}", extra={"value": value}) == str(value)


def test_what_is_no_json_is_the_callers_error():
    with pytest.raises(RequestError, match="fails on these messages"):
        render("x", extra={"value": object()})


def test_a_server_that_can_start_no_process_says_so(monkeypatch):
    """As where descriptors or processes have run out."""
    template = ChatTemplate("{{ messages }}", {})

    def start(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    template._pool.close()  # none is idle: one must be started
    monkeypatch.setattr("headstock.sandbox.process.subprocess.Popen", start)
    with pytest.raises(RequestError, match="Too many open files") as caught:
        template.render([{"role": "user", "content": "x"}])
    assert caught.value.code == "template_unavailable"
    with pytest.raises(ConfigError, match="Too many open files") as refused:
        ChatTemplate("{{ messages }}", {})
    assert "Raise the limits" in refused.value.remedy
