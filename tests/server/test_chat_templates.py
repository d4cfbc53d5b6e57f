"""Chats as transformers renders them: turns to continue, and contents as text or as parts."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from headstock.errors import RequestError
from headstock.server.prompter import Prompter
from headstock.server.request import ChatPrompt
from headstock.text import ChatTemplate, forms_of
from tests.server.toy_tokenizer import toy_backend

transformers = pytest.importorskip("transformers")

HEAD = "{% for m in messages %}"
GO_ON = "{% if add_generation_prompt %}"
CHATML = (
    HEAD + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}" + GO_ON
)
USER = "{% if m.role == 'user' %}<U>{{ m.content }}{% else %}"
TEXT_PARTS = "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
SHAPES = {
    "chatml": CHATML + "<|im_start|>assistant\n{% endif %}",
    "thinks": HEAD + USER + "<A>{{ m.content }}<E>{% endif %}{% endfor %}" + GO_ON
    + "<A><think>\n{% endif %}",
    "empty thought": HEAD + USER + "<A>{% if loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<E>{% endif %}{% endfor %}" + GO_ON + "<A>\n{% endif %}",
    "thought apart": HEAD + USER + "<A>{{ m.content.split('</think>')[-1].lstrip('\n') }}<E>"
    "{% endif %}{% endfor %}" + GO_ON + "<A>{% endif %}",
    "trims": HEAD + "<H>{{ m.role }}\n\n{{ m.content | trim }}<E>{% endfor %}" + GO_ON
    + "<H>assistant\n\n{% endif %}",
    "strips": HEAD + "<H>{{ m['content'].strip() + '<E>' }}{% endfor %}" + GO_ON + "<H>{% endif %}",
    "trims its end": HEAD + "<H>{{ m.content.rstrip() }}<E>{% endfor %}" + GO_ON + "<H>{% endif %}",
    "default system": "{% if messages[0].role != 'system' %}<S>You are good.<E>{% endif %}"
    + CHATML + "<|im_start|>assistant\n{% endif %}",
    "instructions": "{{ bos_token }}" + HEAD + "{% if m.role == 'user' %}[INST] {{ m.content }} "
    "[/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "another role": HEAD + "<T>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<E>\n{% endfor %}" + GO_ON + "<T>model\n{% endif %}",
    "marks generation": HEAD + USER + "<A>{% generation %}{{ m.content }}{% endgeneration %}<E>"
    "{% endif %}{% endfor %}",
    "parts": HEAD + "{{ m.role }}:" + TEXT_PARTS + ";{% endfor %}" + GO_ON
    + "assistant:{% endif %}",
    "both": HEAD + "{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}"
    + TEXT_PARTS + "{% endif %};{% endfor %}",
    "both, trimmed": HEAD + "{{ m.role }}:{% if m.content is string %}{{ m.content | trim }}"
    "{% else %}{% for p in m.content %}{{ p.text | trim }}{% endfor %}{% endif %};{% endfor %}",
    "forgets": HEAD + USER + "<A><E>{% endif %}{% endfor %}",
    "shouts": HEAD + "{{ m.content | upper }}{% endfor %}",
}  # fmt: skip
ENDINGS = ["Hel", "Hel \n", "  Hel", "Hel\n\nlo ", "<think>\nx\n</think>\n\nHel"]
HI = {"role": "user", "content": "Say hello"}


@pytest.fixture(scope="module")
def theirs() -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=toy_backend(), bos_token="<|begin|>", eos_token="<|end|>"
    )


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@functools.lru_cache(maxsize=1)
def template_of(source: str) -> ChatTemplate:
    """Return the template; the next test of the same one finds its process running."""
    return ChatTemplate(source, {"bos_token": "<|begin|>", "eos_token": "<|end|>"})


def render(source: str, messages: list[dict[str, Any]], **more: Any) -> str:
    return Prompter(None, template_of(source)).render(ChatPrompt(messages, **more))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("before", [[HI], [], [HI, {"role": "assistant", "content": "Hel"}, HI]])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_turn_is_gone_on_with_as_in_transformers(theirs, shape, ending, before) -> None:
    source = SHAPES[shape]
    messages = [*before, {"role": "assistant", "content": ending}]
    forms = forms_of(template_of(source))
    given = messages
    if not forms.text:
        given = [{**m, "content": parts(m["content"])} for m in messages]
    try:
        want = theirs.apply_chat_template(
            given, chat_template=source, tokenize=False, continue_final_message=True
        )
    except ValueError:
        with pytest.raises(RequestError) as refused:
            render(source, messages, continue_final=True)
        assert refused.value.field == "continue_final_message"
        return
    assert render(source, messages, continue_final=True) == want


def test_a_template_that_shows_a_turn_twice_leaves_no_mark() -> None:
    source = HEAD + "{{ m.content }}|{{ m.content }}<E>{% endfor %}"
    messages = [{"role": "assistant", "content": "Hel "}]
    assert render(source, messages, continue_final=True) == "Hel |Hel "


def test_the_thinking_templates_do_not_take_the_turn_for_a_thought() -> None:
    messages = [HI, {"role": "assistant", "content": "Hel"}]
    assert render(SHAPES["thinks"], messages, continue_final=True) == "<U>Say hello<A>Hel"


@pytest.mark.parametrize("ending", [("Hel",), ("One. ", "Hel "), (" One.", "Two")])
@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize("shape", ["parts", "both", "both, trimmed"])
def test_parts_reach_a_template_that_reads_them(theirs, shape, ending, continues) -> None:
    messages = [
        {"role": "user", "content": parts("Say", " hello")},
        {"role": "assistant", "content": parts(*ending)},
    ]
    want = theirs.apply_chat_template(
        messages,
        chat_template=SHAPES[shape],
        tokenize=False,
        continue_final_message=continues,
        add_generation_prompt=not continues,
    )
    assert render(SHAPES[shape], messages, continue_final=continues) == want


@pytest.mark.parametrize("content", ["hello", parts("hello")])
def test_a_template_that_loops_over_parts_gets_a_plain_string_as_one(content) -> None:
    source = HEAD + "{{ m.role }}:" + TEXT_PARTS + ";{% endfor %}"
    assert render(source, [{"role": "user", "content": content}]) == "user:hello;"


def test_a_template_that_reads_text_gets_parts_joined_by_a_space() -> None:
    messages = [{"role": "user", "content": parts("one", "two")}]
    assert render(HEAD + "{{ m.content }}{% endfor %}", messages) == "one two"


@pytest.mark.parametrize(
    ("shape", "text", "in_parts"),
    [("chatml", True, False), ("parts", False, True), ("both", True, True), ("trims", True, False)],
)
def test_what_a_template_reads_is_found_out(shape, text, in_parts) -> None:
    forms = forms_of(ChatTemplate(SHAPES[shape], {}))
    assert (forms.text, forms.parts) == (text, in_parts)


def test_a_template_that_refuses_the_probe_reads_text() -> None:
    forms = forms_of(ChatTemplate("{{ raise_exception('system first') }}", {}))
    assert (forms.text, forms.parts) == (True, False)
