"""Rerankers that generate yes or no, against sentence-transformers on the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentence_transformers
import tokenizers
import torch
import transformers
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore

import headstock
from headstock.errors import RequestError
from headstock.testing.oracle.case import SIZES, randomize
from tests.models.test_pooled import ENGINE

WORDS = ["[PAD]", "[UNK]", "yes", "no", "query", "document", *"abcdefghijklmnopqrstuvwxyz"]
TEMPLATE = """
{%- set ns = namespace(said='i j k', query='', document='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{%- set ns.said = message['content'] -%}
{%- elif message['role'] == 'query' -%}{%- set ns.query = message['content'] -%}
{%- elif message['role'] == 'document' -%}{%- set ns.document = message['content'] -%}
{%- endif -%}
{%- endfor -%}
yes or no {{ ns.said }} query {{ ns.query }} document {{ ns.document }} a n s w e r
"""
VARIABLES = (
    "yes or no {{ instruct | default('i j k') }} query {{ query }} document {{ document }} a"
)
PAIRS = [("a b c", "d e"), ("a b c", "f g h i j k"), ("l", "a"), ("m n o p q r s t u v w", "x y")]
SETTINGS = {"backend": "reference", "dtype": "float32", "page_size": 4, "chunked_prefill_size": 16}


def save_model(path: Path, template: str = TEMPLATE) -> transformers.PreTrainedModel:
    """Save a small Qwen3 whose template takes a query and a document; return it."""
    config = transformers.Qwen3Config(**SIZES, head_dim=32, attn_implementation="eager")
    torch.manual_seed(0)
    oracle = transformers.Qwen3ForCausalLM(config).eval()
    randomize(oracle)
    oracle.save_pretrained(path)
    vocabulary = {word: n for n, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    made.chat_template = template
    made.save_pretrained(path)
    return oracle


def save_reranker(path: Path, **options: object) -> sentence_transformers.CrossEncoder:
    """Save a reranker as the library does; return it."""
    save_model(path / "plain")
    reads = Transformer(str(path / "plain"), transformer_task="text-generation")
    score = LogitScore(true_token_id=2, false_token_id=3)
    made = sentence_transformers.CrossEncoder(modules=[reads, score], device="cpu", **options)
    made.save_pretrained(str(path / "saved"))
    return made


def scores(path: Path, instruct: str | None = None) -> list[float]:
    found: list[float] = []
    with headstock.Engine(model=str(path), **SETTINGS) as engine:
        for query, document in PAIRS:
            more = {} if instruct is None else {"instruct": instruct}
            ((got,),) = engine.score(query, [document], **more)
            found.append(got)
    return found


@pytest.mark.parametrize("activation", ["Sigmoid", "Identity"])
def test_scores_of_a_saved_reranker_are_those_of_the_library(
    tmp_path: Path, activation: str
) -> None:
    """A probability, or log-odds where it was saved without an activation."""
    oracle = save_reranker(tmp_path, activation_fn=getattr(torch.nn, activation)())
    want = oracle.predict(PAIRS).tolist()
    assert scores(tmp_path / "saved") == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_an_instruction_is_the_prompt_of_the_library(tmp_path: Path) -> None:
    prompts = {"web": "w e b", "other": "o t h e r"}
    oracle = save_reranker(tmp_path, prompts=prompts, default_prompt_name="web")
    want = oracle.predict(PAIRS).tolist()
    assert scores(tmp_path / "saved") == pytest.approx(want, rel=1e-4)
    want = oracle.predict(PAIRS, prompt="o t h e r").tolist()
    assert scores(tmp_path / "saved", "o t h e r") == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("template", [TEMPLATE, VARIABLES])
@pytest.mark.parametrize("instruct", [None, "w e b"])
def test_a_template_alone_makes_a_reranker(
    tmp_path: Path, template: str, instruct: str | None
) -> None:
    oracle = save_model(tmp_path, template)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    end = "a n s w e r" if template == TEMPLATE else "a"
    for got, (query, document) in zip(scores(tmp_path, instruct), PAIRS, strict=True):
        text = f"yes or no {instruct or 'i j k'} query {query} document {document} {end}"
        with torch.no_grad():
            logits = oracle(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
        assert got == pytest.approx((logits[2] - logits[3]).sigmoid().item(), rel=1e-4)


def test_labels_of_the_caller_s_are_scored_as_by_any_model(tmp_path: Path) -> None:
    oracle = save_model(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with headstock.Engine(model=str(tmp_path), **SETTINGS) as engine:
        (got,) = engine.score("a b ", ["c"], label_token_ids=[7, 9], apply_softmax=True)
        with torch.no_grad():
            logits = oracle(torch.tensor([tokenizer("a b c")["input_ids"]])).logits[0, -1]
    assert got == pytest.approx(logits[[7, 9]].softmax(0).tolist(), rel=1e-4)


def test_a_model_without_such_a_template_takes_no_instruction(tmp_path: Path) -> None:
    save_model(tmp_path, "{{ messages[0]['content'] }}")
    with headstock.Engine(model=str(tmp_path), **SETTINGS) as engine:
        assert engine.card.verdict_ids == []
        with pytest.raises(RequestError, match="instruct"):
            engine.score("a", ["b"], instruct="c", label_token_ids=[1])


def test_modules_with_one_id_alone_are_no_reranker(tmp_path: Path) -> None:
    save_reranker(tmp_path)
    (file,) = (tmp_path / "saved").glob("*LogitScore/config.json")
    file.write_text(json.dumps({"true_token_id": 2, "false_token_id": None}))
    with pytest.raises(headstock.errors.UnsupportedError, match="LogitScore"):
        headstock.Engine(model=str(tmp_path / "saved"), **ENGINE)
