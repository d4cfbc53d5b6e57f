"""What single tokens yield of a folder as BGE-M3's authors save it, against their formulas.

Chen et al. 2024, "M3-Embedding", section 3.3: one vector of the first token; a weight of each
token, max(0, w h); a vector of each token, of length 1.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

import headstock
from headstock.errors import CheckpointError
from tests.models.test_pooled import ENGINE, as_sentence_model, encoder, prompts

SIZE, NARROW = 64, 24


def save_heads(path: Path) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    """Save the two heads as torch's state dicts; return sparse and multi-vector."""
    torch.manual_seed(3)
    sparse, colbert = torch.nn.Linear(SIZE, 1), torch.nn.Linear(SIZE, NARROW)
    torch.save(sparse.state_dict(), path / "sparse_linear.pt")
    torch.save(colbert.half().state_dict(), path / "colbert_linear.pt")
    return sparse, colbert.float()


def ask(engine: headstock.Engine, **body: Any) -> list[dict[str, Any]]:
    status, answer = asyncio.run(engine.async_request("/pooling", body))
    assert status == 200, answer
    return answer["data"]


def test_texts_have_a_vector_tokens_have_weights_and_vectors(tmp_path: Path) -> None:
    """All three in any order, texts of several lengths in one step; marks have no weight."""
    path = tmp_path / "m"
    oracle = encoder("xlm-roberta", "Model", path, bos_token_id=0, eos_token_id=2)
    as_sentence_model(path, "cls_token")
    sparse, colbert = save_heads(path)
    texts = [[0, *(max(token, 3) for token in ids), 2] for ids in prompts(5, 1, 40, 16)]
    settings: dict[str, Any] = ENGINE | {"page_size": 4, "max_running_requests": 4}
    with headstock.Engine(model=str(path), **settings) as engine:
        assert engine.started.limits.yields == ("pool", "token_embed", "token_classify")
        weights = ask(engine, input=texts, task="token_classify")
        vectors = ask(engine, input=texts, task="token_embed")
        whole = ask(engine, input=texts)
        assert ask(engine, input=texts, task="embed") == whole
        for ids, weight, vector, text in zip(texts, weights, vectors, whole, strict=True):
            with torch.no_grad():
                states = oracle(torch.tensor([ids])).last_hidden_state[0]
                want = [sparse(states[1:-1]).relu(), normalize(colbert(states[1:]), dim=-1)]
            assert (weight["token_ids"], vector["token_ids"]) == (ids[1:-1], ids[1:])
            for got, right in zip((weight, vector), want, strict=True):
                torch.testing.assert_close(torch.tensor(got["data"]), right, rtol=1e-4, atol=1e-5)
            first = normalize(states[0], dim=0)
            torch.testing.assert_close(torch.tensor(text["data"]), first, rtol=1e-4, atol=1e-5)


def test_heads_that_hold_more_than_tensors_are_refused_and_nothing_runs(tmp_path: Path) -> None:
    path = tmp_path / "m"
    encoder("xlm-roberta", "Model", path)
    as_sentence_model(path, "cls_token")
    torch.save({"weight": torch.ones(1, SIZE), "more": Path("x")}, path / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match=r"sparse_linear\.pt holds something else"):
        headstock.Engine(model=str(path), **ENGINE)
