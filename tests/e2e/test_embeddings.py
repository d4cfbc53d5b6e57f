"""A real embedding model, served: the vectors of sentence-transformers, which are transformers'."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
import torch
import transformers
from torch import Tensor

from headstock.checkpoint.pull import cached_path, find, is_here
from tests.e2e.served import Served, served

NAME = "all-minilm-l6-v2"
TEXTS = [
    "A cat sits on the mat.",
    "The weather is lovely today.",
    "kitten",
    "Der Hund läuft schnell nach Hause.",
    "The stock market crash of 1929",
    "x",
    "",
    "again and " * 200,
    "Hello, world! 12345 :-)",
    "naïve café, Zürich",
    *(f"This sentence is about {what}." for what in ("cars", "love", "tea", "maths", "rain")),
    "How do I boil an egg?",
    "To boil an egg, put it into boiling water for eight minutes.",
    "日本語の文章です。",
    "def f(x):\n    return x + 1",
    "  spaces   and\ttabs\n",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    model = find(NAME)
    if not is_here(model, cached_path(model)):
        pytest.skip(f"{NAME} was never pulled: `headstock pull {NAME}`")
    with served(NAME) as server:
        yield server


def oracle(texts: list[str]) -> Tensor:
    """What sentence-transformers computes: the mean of hidden states, of length 1."""
    path = cached_path(find(NAME))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path).eval()
    rows: list[Tensor] = []
    for text in texts:
        given = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            rows.append(model(**given).last_hidden_state[0].mean(0))
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def test_twenty_sentences_have_the_vectors_of_transformers(server: Served) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    more = {"truncate_prompt_tokens": -1}
    data = client.embeddings.create(model=NAME, input=TEXTS, extra_body=more).data
    got = torch.tensor([item.embedding for item in data])
    assert got.shape == (20, 384)
    cosines = (got * oracle(TEXTS)).sum(1)
    assert cosines.min() > 0.9999, cosines


def test_the_banner_says_what_the_model_is_for_and_how_to_ask_it(server: Served) -> None:
    assert "embed, mean of hidden states, normalised; whole texts in one step" in server.log
    assert "/v1/embeddings" in server.log
    assert "/v1/chat/completions" not in server.log
