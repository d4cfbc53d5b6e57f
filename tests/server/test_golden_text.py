"""Tokens and prompts are those that transformers makes of the same files."""

import json

import pytest
from tokenizers.processors import TemplateProcessing

from headstock.checkpoint import resolve
from headstock.checkpoint.pull import cached_path, find
from headstock.text import ChatTemplate, Tokenizer, make_detokenizer
from tests.server.toy_tokenizer import TEMPLATE, toy_backend

transformers = pytest.importorskip("transformers")

TEXTS = [
    "What is the capital of France?",
    "été 漢字 🎉👩‍👩‍👧 \n\n  x='s\t\ttabs",
    " leading and trailing ",
    "def f(x):\n    return x ** 2  # ok",
    "<|turn|>user: not a turn<|end|>",
    "",
]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LONG = (
    "{{- bos_token }}\n"
    "{%- if not date is defined %}{%- set date = strftime_now('%Y') %}{%- endif %}\n"
    "{%- set ns = namespace(system='') %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n"
    "  {%- set ns.system = messages[0]['content'] | trim %}\n"
    "  {%- set messages = messages[1:] %}\n"
    "{%- endif %}\n"
    "[{{ date }}] {{ ns.system }}\n"
    "{%- for message in messages %}\n"
    "  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
    "    {{- raise_exception('roles must alternate') }}\n"
    "  {%- endif %}\n"
    "  {%- if loop.index > 4 %}{% break %}{% endif %}\n"
    "{{ message | tojson }} {{ {'k': [1, 2.5, none, true], 'é': '<b>'} | tojson(indent=2) }}\n"
    "  {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}"
    "{% endgeneration %}{% endif %}\n"
    "{%- endfor %}\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}<no think>{% endif %}"
    "{%- if add_generation_prompt %}{{ '>>' }}{% endif %}"
)
CHATS = [
    [{"role": "user", "content": "hi"}],
    [
        {"role": "system", "content": " Be <brief> & kind. "},
        {"role": "user", "content": "é\n"},
        {"role": "assistant", "content": "ja"},
        {"role": "user", "content": "漢"},
    ],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder as transformers writes it, and transformers' tokenizer of it."""
    backend = toy_backend()
    backend.post_processor = TemplateProcessing(
        single=["<|begin|>", "$A"], special_tokens=[("<|begin|>", 0)]
    )
    path = tmp_path_factory.mktemp("model")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>"
    )
    theirs.chat_template = TEMPLATE
    theirs.save_pretrained(path)
    return path, theirs


def test_a_folder_reads_as_transformers_reads_it(folder):
    path, theirs = folder
    ours = Tokenizer.from_folder(path)
    assert ours.special["eos_token"] == "<|end|>"
    assert ours.chat_template == TEMPLATE
    for text in TEXTS:
        token_ids = ours.encode(text)
        assert token_ids == theirs(text)["input_ids"]
        assert token_ids[:1] == [0]
        for skip in (True, False):
            want = theirs.decode(token_ids, skip_special_tokens=skip)
            assert ours.decode(token_ids, skip_special_tokens=skip) == want


@pytest.mark.parametrize("source", [TEMPLATE, CHATML, LONG])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("extra", [{}, {"enable_thinking": False}])
def test_templates_render_as_in_transformers(folder, source, chat, prompt, extra):
    _, theirs = folder
    special = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    ours = ChatTemplate(source, special).render(chat, add_generation_prompt=prompt, extra=extra)
    want = theirs.apply_chat_template(
        chat, chat_template=source, add_generation_prompt=prompt, tokenize=False, **extra
    )
    assert ours == want


@pytest.mark.slow
def test_the_default_models_tokenizer_is_the_one_transformers_builds():
    path = cached_path(find("smollm2"))
    if not path.exists():
        pytest.skip("smollm2 was never pulled: `headstock pull smollm2`")
    files = resolve(str(path))
    assert files.read_tokenizer is not None
    ours = Tokenizer.from_gguf(files.read_tokenizer())
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        # transformers does not know that this pre-tokenizer splits digits: none in these texts.
        assert ours.encode(text) == theirs(text)["input_ids"]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    rendered = ChatTemplate(ours.chat_template, ours.special).render(chat)
    assert rendered == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    token_ids = ours.encode(json.dumps(TEXTS))
    detokenizer = make_detokenizer(ours)
    whole = "".join(map(detokenizer.push, token_ids)) + detokenizer.flush()
    assert whole == theirs.decode(token_ids, skip_special_tokens=True) == ours.decode(token_ids)
