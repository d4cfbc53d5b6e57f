"""The tokenizer of a GGUF file, as files that `transformers` opens."""

from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from headstock.assemble.tokenizer import openable_path
from headstock.server.prompter import Prompter
from headstock.text import ChatTemplate, Tokenizer
from tests.server.toy_tokenizer import TEMPLATE, toy_backend

TEXT = "héllo <|turn|> 🍕"
CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture
def prompter():
    tokenizer = Tokenizer(toy_backend(), special={"eos_token": "<|end|>"})
    return Prompter(tokenizer, ChatTemplate(TEMPLATE, tokenizer.special))


def files_at(path, *, is_gguf=True):
    if is_gguf:
        path.write_bytes(b"GGUF")
    return SimpleNamespace(path=path, read_tokenizer=(lambda: None) if is_gguf else None)


def test_transformers_opens_what_was_written_and_agrees(tmp_path, prompter):
    path = openable_path(files_at(tmp_path / "m.Q4_1.gguf"), "smollm2", prompter)
    opened = AutoTokenizer.from_pretrained(path)
    assert opened.encode(TEXT) == prompter.tokenizer.encode(TEXT)
    assert opened.eos_token == "<|end|>"
    rendered = opened.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert rendered == prompter.template.render(CHAT)


def test_a_read_only_folder_sends_it_to_the_cache(tmp_path, prompter, monkeypatch):
    (tmp_path / "m-tokenizer").write_text("a file is in the way")
    monkeypatch.setenv("HEADSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    path = openable_path(files_at(tmp_path / "m.gguf"), "m", prompter)
    assert path == str(tmp_path / "cache" / "tokenizers" / "m-tokenizer")
    assert AutoTokenizer.from_pretrained(path).encode(TEXT) == prompter.tokenizer.encode(TEXT)


def test_it_is_written_again_only_when_its_source_has_changed(tmp_path, prompter, monkeypatch):
    written = []
    exported = Tokenizer.exported
    monkeypatch.setattr(Tokenizer, "exported", lambda *given: written.append(1) or exported(*given))
    files = files_at(tmp_path / "m.gguf")
    for expected in (1, 1):
        openable_path(files, "m", prompter)
        assert len(written) == expected
    files.path.write_bytes(b"GGUF and more")
    openable_path(files, "m", prompter)
    assert len(written) == 2
    (tmp_path / "m-tokenizer" / "tokenizer.json").unlink()
    folder = openable_path(files, "m", prompter)
    assert AutoTokenizer.from_pretrained(folder).encode(TEXT) == prompter.tokenizer.encode(TEXT)


def test_a_folder_is_its_own_path(tmp_path, prompter):
    assert openable_path(files_at(tmp_path, is_gguf=False), "some/model", prompter) == "some/model"
