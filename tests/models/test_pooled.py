"""Models that yield vectors, through the whole engine, against transformers in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from torch import Tensor

import headstock
from headstock.assemble.plan import make_plan
from headstock.config import EngineSettings, settings_from_call
from headstock.errors import ConfigError, RequestError, UnsupportedError
from tests.models.conftest import Save, Saved

ENGINE = {"backend": "reference", "dtype": "float32", "skip_tokenizer_init": True}
SENTENCE = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_N", "type": "sentence_transformers.models.Normalize"},
]


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 128, (n,), generator=generator).tolist() for n in lengths]


def as_sentence_model(path: Path, mode: str = "lasttoken", **more: object) -> None:
    """Write the files that sentence-transformers would put beside a model."""
    (path / "modules.json").write_text(json.dumps(SENTENCE))
    (path / "1_Pooling").mkdir()
    pooling = {f"pooling_mode_{mode}": True, "pooling_mode_max_tokens": False} | more
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def hidden(saved: Saved, ids: list[int]) -> Tensor:
    base = getattr(saved.oracle, saved.oracle.base_model_prefix, saved.oracle)
    with torch.no_grad():
        return base(torch.tensor([ids])).last_hidden_state[0]


def last(saved: Saved, ids: list[int]) -> Tensor:
    return torch.nn.functional.normalize(hidden(saved, ids)[-1], dim=0)


def assert_vector(got: list[float], want: Tensor) -> None:
    difference = (torch.tensor(got) - want).norm() / want.norm()
    assert difference < 1e-5, difference


@pytest.fixture
def embedder(save: Save) -> Iterator[tuple[headstock.Engine, Saved]]:
    saved = save("qwen3")
    as_sentence_model(saved.path)
    sizes = {"chunked_prefill_size": 16, "page_size": 4, "max_running_requests": 4}
    with headstock.Engine(model=str(saved.path), **ENGINE, **sizes) as engine:
        yield engine, saved


def test_vectors_of_a_decoder_are_those_of_transformers(
    embedder: tuple[headstock.Engine, Saved],
) -> None:
    """In chunks, in mixed batches, and after a hit that ends inside the text."""
    engine, saved = embedder
    assert engine.card.task == "embed"
    texts = prompts(5, 1, 50, 16, 33)
    for _ in range(2):
        for answer, ids in zip(engine.embed(input_ids=texts), texts, strict=True):
            assert_vector(answer["embedding"], last(saved, ids))
    longer = [*texts[2][:41], 3, 1, 4]
    answer = engine.embed(input_ids=longer)
    assert_vector(answer["embedding"], last(saved, longer))
    assert answer["meta_info"]["cached_tokens"] == 40


def test_vectors_are_cut_to_the_dimensions_asked_for_and_have_length_1_again(
    embedder: tuple[headstock.Engine, Saved],
) -> None:
    engine, saved = embedder
    (ids,) = prompts(9)
    want = torch.nn.functional.normalize(last(saved, ids)[:24], dim=0)
    assert_vector(engine.embed(input_ids=ids, dimensions=24)["embedding"], want)
    for wrong in (0, 65):
        with pytest.raises(RequestError, match="dimensions"):
            engine.embed(input_ids=ids, dimensions=wrong)


def test_an_embedding_model_generates_nothing_and_says_what_it_is(
    embedder: tuple[headstock.Engine, Saved],
) -> None:
    engine, _ = embedder
    with pytest.raises(RequestError, match="embeds texts"):
        engine.generate(input_ids=[1, 2])
    assert engine.started.limits.yields == ("pool",)


def test_a_model_that_generates_embeds_nothing_and_says_what_it_is(save: Save) -> None:
    with headstock.Engine(model=str(save("llama").path), **ENGINE) as engine:
        with pytest.raises(RequestError, match="generates text"):
            engine.embed(input_ids=[1, 2])
        assert engine.started.limits.yields == ("draw",)


def test_an_end_that_the_vocabulary_lacks_matters_to_text_alone(save: Save) -> None:
    """Cut vocabularies keep the configuration of the whole one."""
    saved = save("llama", eos_token_id=128)
    (ids,) = prompts(9)
    with headstock.Engine(model=str(saved.path), task="embed", **ENGINE) as engine:
        assert_vector(engine.embed(input_ids=ids)["embedding"], last(saved, ids))


@pytest.mark.parametrize("kind", ["last", "mean", "cls"])
def test_a_flag_makes_an_embedding_model_of_a_decoder(save: Save, kind: str) -> None:
    """Mean and first token need the whole text in one step: nothing is cut or cached."""
    saved = save("llama")
    texts = prompts(7, 30, 1)
    settings = ENGINE | {"task": "embed", "pooling": kind, "max_model_len": 64}
    with headstock.Engine(model=str(saved.path), **settings) as engine:
        for _ in range(2):
            for answer, ids in zip(engine.embed(input_ids=texts), texts, strict=True):
                states = hidden(saved, ids)
                want = {"last": states[-1], "mean": states.mean(0), "cls": states[0]}[kind]
                want = torch.nn.functional.normalize(want, dim=0)
                assert_vector(answer["embedding"], want)
                assert kind == "last" or answer["meta_info"]["cached_tokens"] == 0


def test_a_checkpoint_that_was_saved_without_its_head_is_embedded(
    save: Save, tmp_path: Path
) -> None:
    saved = save("qwen3")
    saved.oracle.model.save_pretrained(tmp_path / "base")
    (ids,) = prompts(12)
    with headstock.Engine(model=str(tmp_path / "base"), **ENGINE) as engine:
        assert_vector(engine.embed(input_ids=ids)["embedding"], last(saved, ids))


def test_kinds_of_pooling_that_are_not_computed_are_refused_by_name(save: Save) -> None:
    saved = save("qwen3")
    as_sentence_model(saved.path, "weightedmean_tokens")
    with pytest.raises(UnsupportedError, match="pooling_mode_weightedmean_tokens"):
        headstock.Engine(model=str(saved.path), **ENGINE)


def test_modules_that_are_not_computed_matter_where_vectors_are_wanted_alone(save: Save) -> None:
    """A reranker's files may have modules, too, of a model that generates."""
    saved = save("qwen3")
    as_sentence_model(saved.path)
    modules = [SENTENCE[0], {"path": "1", "type": "sentence_transformers.models.LogitScore"}]
    (saved.path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedError, match="LogitScore"):
        headstock.Engine(model=str(saved.path), **ENGINE)
    with headstock.Engine(model=str(saved.path), task="generate", **ENGINE) as engine:
        ids = {"label_token_ids": [7, 9], "apply_softmax": True}
        (got,) = engine.score([5, 6], [[1, 2]], **ids)
        want = saved.logits([5, 6, 1, 2])[-1][[7, 9]].softmax(0)
        assert got == pytest.approx(want.tolist(), rel=1e-4)


def test_a_plan_of_an_embedding_model_has_no_room_for_logits(save: Save) -> None:
    path = save("qwen3").path
    plans = {
        task: make_plan(settings_from_call(EngineSettings, {"model": str(path), "task": task}))
        for task in ("generate", "embed")
    }
    generates, embeds = plans["generate"], plans["embed"]
    assert (generates.optional > 0, embeds.optional) == (True, 0)
    assert embeds.workspace < generates.workspace
    assert embeds.num_parameters == generates.num_parameters - 64 * 128
    assert embeds.task.startswith("embed, last of hidden states, normalised")


def test_an_encoder_keeps_no_more_than_the_steps_in_flight(tmp_path: Path) -> None:
    encoder("bert", "Model", tmp_path / "m")
    settings = ENGINE | {"page_size": 4, "max_running_requests": 4, "chunked_prefill_size": 100}
    with headstock.Engine(model=str(tmp_path / "m"), **settings) as engine:
        (group,) = engine.started.limits.groups
        assert (group.num_pages - 1) * 4 == 112  # of 100 tokens, and of four last pages
        engine.embed(input_ids=prompts(*[25] * 40))


@pytest.mark.parametrize("setting", [{"speculation": "ngram"}, {"max_loras": 2}])
def test_what_generating_alone_has_is_refused(save: Save, setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="served to embed"):
        headstock.Engine(model=str(save("llama").path), task="embed", **setting, **ENGINE)


def test_pooling_without_embedding_is_refused(save: Save) -> None:
    with pytest.raises(ConfigError, match="pooling"):
        headstock.Engine(model=str(save("llama").path), pooling="mean", **ENGINE)


CLASSIFIERS = {
    "llama": transformers.LlamaForSequenceClassification,
    "qwen3": transformers.Qwen3ForSequenceClassification,
    "qwen2": transformers.Qwen2ForSequenceClassification,
    "gemma2": transformers.Gemma2ForSequenceClassification,
}


@pytest.mark.parametrize("family", CLASSIFIERS)
@pytest.mark.parametrize("num_labels", [1, 3])
def test_scores_of_reward_models_are_those_of_transformers(
    save: Save, tmp_path: Path, family: str, num_labels: int
) -> None:
    saved = save(family, num_labels=num_labels, pad_token_id=0)
    oracle = CLASSIFIERS[family](saved.oracle.config).eval()
    oracle.model.load_state_dict(saved.oracle.model.state_dict())
    oracle.save_pretrained(tmp_path / "classifier")
    texts = [[token or 1 for token in ids] for ids in prompts(5, 40, 1)]
    settings = ENGINE | {"chunked_prefill_size": 16, "page_size": 4}
    with headstock.Engine(model=str(tmp_path / "classifier"), **settings) as engine:
        assert engine.card.task == "classify"
        for answer, ids in zip(engine.embed(input_ids=texts), texts, strict=True):
            with torch.no_grad():
                want = oracle(torch.tensor([ids])).logits[0]
            got = torch.tensor(answer["embedding"])
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


ENCODERS = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    "bert, gelu by tanh": ("Bert", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
}
SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 80,
    "initializer_range": 0.3,
}


def encoder(name: str, head: str, path: Path, **more: object) -> transformers.PreTrainedModel:
    """Save a small encoder of random weights, biases and norms among them; return its oracle."""
    stem, given = ENCODERS[name]
    config = getattr(transformers, f"{stem}Config")(**SIZES | given | more)
    torch.manual_seed(0)
    oracle = getattr(transformers, stem + head)(config).eval()
    for key, value in oracle.named_parameters():
        if key.endswith("bias") or "LayerNorm" in key:
            torch.nn.init.normal_(value.data, mean=0.5, std=0.3)
    oracle.save_pretrained(path)
    return oracle


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("kind", ["mean", "cls"])
def test_vectors_of_an_encoder_are_those_of_transformers(
    tmp_path: Path, name: str, kind: str
) -> None:
    oracle = encoder(name, "Model", tmp_path / "m")
    texts = [[token or 7 for token in ids] for ids in prompts(5, 1, 78, 16, 33)]
    texts = [[7 if token == 1 else token for token in ids] for ids in texts]
    settings = ENGINE | {"page_size": 4, "max_running_requests": 4, "pooling": kind}
    with headstock.Engine(model=str(tmp_path / "m"), **settings) as engine:
        assert engine.started.limits.is_causal is False
        for answer, ids in zip(engine.embed(input_ids=texts), texts, strict=True):
            with torch.no_grad():
                states = oracle(torch.tensor([ids])).last_hidden_state[0]
            want = states.mean(0) if kind == "mean" else states[0]
            assert_vector(answer["embedding"], torch.nn.functional.normalize(want, dim=0))


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


def write_tokenizer(path: Path) -> transformers.PreTrainedTokenizerFast:
    """Save a tokenizer of letters that marks the second text of a pair."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    made.save_pretrained(path)
    return made


PAIRS = [["a b c", "d e"], ["f", "g h i j k"], ["a", "a"]]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("num_labels", [1, 3])
def test_scores_of_cross_encoders_are_those_of_transformers(
    tmp_path: Path, name: str, num_labels: int
) -> None:
    """Where there are types, tokens of a pair's second text have another."""
    oracle = encoder(name, "ForSequenceClassification", tmp_path / "m", num_labels=num_labels)
    tokenizer = write_tokenizer(tmp_path / "m")
    has_types = oracle.config.type_vocab_size > 1
    settings = {"backend": "reference", "dtype": "float32", "page_size": 4}
    with headstock.Engine(model=str(tmp_path / "m"), **settings) as engine:
        for answer, pair in zip(engine.embed(PAIRS), PAIRS, strict=True):
            given = tokenizer(*pair, return_tensors="pt", return_token_type_ids=has_types)
            with torch.no_grad():
                want = oracle(**given).logits[0]
            got = torch.tensor(answer["embedding"])
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        scores = engine.score("a b c", ["d e"])
        want = oracle(**tokenizer(*PAIRS[0], return_tensors="pt", return_token_type_ids=has_types))
        probs = want.logits[0].sigmoid() if num_labels == 1 else want.logits[0].softmax(0)
        assert scores[0] == pytest.approx(probs.tolist(), rel=1e-4)


def test_a_text_longer_than_the_places_that_there_are_is_refused(tmp_path: Path) -> None:
    encoder("roberta", "Model", tmp_path / "m")
    with headstock.Engine(model=str(tmp_path / "m"), **ENGINE) as engine:
        engine.embed(input_ids=[5] * 78)
        with pytest.raises(RequestError, match="78"):
            engine.embed(input_ids=[5] * 79)


def test_old_names_of_norms_are_read(tmp_path: Path) -> None:
    """As the first checkpoints have them, under a head that is not served."""
    from safetensors.torch import load_file, save_file

    oracle = encoder("bert", "ForMaskedLM", tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(old, file)
    (ids,) = prompts(9)
    with headstock.Engine(model=str(tmp_path / "m"), task="embed", **ENGINE) as engine:
        with torch.no_grad():
            want = oracle.bert(torch.tensor([ids])).last_hidden_state[0].mean(0)
        got = engine.embed(input_ids=ids)["embedding"]
        assert_vector(got, torch.nn.functional.normalize(want, dim=0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "cross-encoder", "decoder"])
def test_two_ranks_give_the_vectors_of_one(tmp_path: Path, save: Save, kind: str) -> None:
    path = tmp_path / "m"
    if kind == "decoder":
        saved = save("qwen3")
        as_sentence_model(saved.path)
        path = saved.path
    else:
        encoder("bert", "Model" if kind == "encoder" else "ForSequenceClassification", path)
    texts = prompts(5, 40, 1)
    found: list[Tensor] = []
    for size in (1, 2):
        settings = ENGINE | {"tp_size": size, "page_size": 4, "chunked_prefill_size": 64}
        with headstock.Engine(model=str(path), **settings) as engine:
            answers = engine.embed(input_ids=texts)
        found.append(torch.tensor([answer["embedding"] for answer in answers]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
