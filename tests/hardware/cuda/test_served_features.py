"""Images, vectors, drafts, grammars, adapters and classes of transformers, over HTTP on a card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

if torch.version.hip is not None or not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU", allow_module_level=True)

from headstock.testing.oracle.case import prompt
from tests.e2e.served import Served, served
from tests.e2e.test_lora import Tuned, tuned  # noqa: F401 - a fixture
from tests.e2e.test_speculation import PROMPTS, save
from tests.models.test_fallback import FAMILIES as WITHOUT_A_FILE
from tests.models.test_fallback import case
from tests.models.test_pooled import assert_vector, encoder
from tests.vision.conftest import make_model, picture, save_tokenizer
from tests.vision.still import ask_as_client, chat_ids, text_of
from tests.vision.still_families import MAKERS

TEXT = ("--backend", "cuda", "--dtype", "float32", "--cache-tokens", "2048")
IDS = (*TEXT, "--skip-tokenizer-init")
GREEDY = {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True}
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["age"],
    "additionalProperties": False,
}


def together(server: Served, bodies: Sequence[dict[str, Any]], path: str = "/generate") -> Any:
    """Return the answers to bodies that are sent at once."""
    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = list(clients.map(lambda body: server.post(path, **body), bodies))
    assert all(answer.status_code == 200 for answer in answers), answers[0].text
    return [answer.json() for answer in answers]


@pytest.mark.parametrize("name", MAKERS)
def test_a_chat_with_images(tmp_path: Path, name: str) -> None:
    model = MAKERS[name](tmp_path / "tiny-still")
    images = [picture(24, 32, 3), picture(16, 40, 4)]
    ids = chat_ids(model, "What is this?", 2, ("", ""))
    content, _ = ask_as_client(model, "What is this?", images, 8, backend="cuda")
    assert content == text_of(model, model.generate(ids, images, 8))


@pytest.mark.parametrize("family", ["Qwen3VL", "Qwen3_5"])
def test_a_chat_with_images_and_positions_of_three_axes(tmp_path: Path, family: str) -> None:
    model = make_model(family, tmp_path / "tiny-vl")
    images = [picture(24, 32, 3), picture(16, 40, 4)]
    ids = chat_ids(model, "What is this?", 2, ("", ""))  # pyright: ignore[reportArgumentType]
    content, _ = ask_as_client(model, "What is this?", images, 8, backend="cuda")  # pyright: ignore[reportArgumentType]
    assert content == text_of(model, model.generate(ids, images, 8))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_vectors_of_an_encoder(tmp_path: Path, kind: str) -> None:
    oracle = encoder(kind, "Model", tmp_path / "m")
    texts = [[max(2, token) for token in prompt(n, seed=n)] for n in (1, 7, 33, 60)]
    flags = ("--pooling", "mean", "--max-model-len", "64")
    with served(str(tmp_path / "m"), *IDS, *flags) as server:
        (found,) = together(server, [{"input": texts}], "/v1/embeddings")
    for item, ids in zip(found["data"], texts, strict=True):
        with torch.no_grad():
            hidden = oracle(torch.tensor([ids])).last_hidden_state[0]
        assert_vector(item["embedding"], torch.nn.functional.normalize(hidden.mean(0), dim=0))


def test_vectors_of_a_decoder(tmp_path: Path) -> None:
    folder = save("qwen3", tmp_path)
    oracle = transformers.AutoModel.from_pretrained(folder).eval()
    texts = [[token % 64 for token in prompt(n, seed=n)] for n in (1, 7, 33, 60)]
    with served(folder, *IDS, "--task", "embed", "--chunked-prefill-size", "16") as server:
        (found,) = together(server, [{"input": texts}], "/v1/embeddings")
    for item, ids in zip(found["data"], texts, strict=True):
        with torch.no_grad():
            last = oracle(torch.tensor([ids])).last_hidden_state[0, -1]
        assert_vector(item["embedding"], torch.nn.functional.normalize(last, dim=0))


def test_drafts_change_no_greedy_id(tmp_path: Path) -> None:
    folder = save("llama", tmp_path)
    bodies = [
        {"input_ids": ids, "sampling_params": GREEDY | {"max_new_tokens": 40}} for ids in PROMPTS
    ]
    found: dict[str, Any] = {}
    for speculation in ("none", "ngram"):
        with served(folder, *IDS, "--speculation", speculation) as server:
            found[speculation] = together(server, bodies)
    ids = {name: [answer["output_ids"] for answer in answers] for name, answers in found.items()}
    assert ids["ngram"] == ids["none"]
    accepted = [a["meta_info"].get("spec_accept_token_num", 0) for a in found["ngram"]]
    assert sum(accepted) > 0


def test_outputs_are_bound_to_a_schema(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=272,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "{{ messages[0].content }}")
    sampling = {"temperature": 1.0, "max_new_tokens": 64}
    bound = {"text": "How old?", "sampling_params": sampling | {"json_schema": json.dumps(SCHEMA)}}
    free = {"text": "How old?", "sampling_params": sampling}
    with served(str(tmp_path), *TEXT, "--max-model-len", "128") as server:
        answers = together(server, [bound, free, bound, free])
    for answer in answers[::2]:
        assert 0 <= json.loads(answer["text"])["age"] <= 99


def test_rows_of_two_adapters_and_none(tuned: Tuned) -> None:  # noqa: F811
    flags = ["--max-loras", "2", "--max-lora-rank", "8", "--chunked-prefill-size", "24"]
    asked = [(name, list(range(3, 40))) for name in (None, "one", "two", "one", None)]
    want = [tuned.want(*pair) for pair in asked]
    with served(str(tuned.folder), *IDS, *flags) as server:
        for name in ("one", "two"):
            path = str(tuned.adapters[name].path)
            together(server, [{"lora_name": name, "lora_path": path}], "/load_lora_adapter")
        bodies = [
            {"input_ids": ids, "lora_path": name, "sampling_params": GREEDY | {"max_new_tokens": 8}}
            for name, ids in asked
        ]
        for _ in range(2):
            assert [answer["output_ids"] for answer in together(server, bodies)] == want


@pytest.mark.parametrize("stem", WITHOUT_A_FILE)
def test_architectures_without_a_file(tmp_path: Path, stem: str) -> None:
    saved = case(stem, WITHOUT_A_FILE[stem]).save(tmp_path)
    prompts = [prompt(57, seed=3), prompt(1, seed=5), prompt(40, seed=6)]
    want: list[list[int]] = []
    for ids in prompts:
        found: list[int] = []
        for _ in range(10):
            found.append(int(saved.logits([*ids, *found])[-1].argmax()))
        want.append(found)
    flags = ("--max-model-len", "128", "--chunked-prefill-size", "24")
    with served(str(tmp_path), *IDS, *flags) as server:
        bodies = [{"input_ids": ids, "sampling_params": GREEDY} for ids in prompts]
        assert [answer["output_ids"] for answer in together(server, bodies)] == want
