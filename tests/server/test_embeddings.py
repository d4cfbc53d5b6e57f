"""Routes of models that yield vectors and scores, over an engine that counts ids."""

import base64
import math

import numpy as np
import ollama
import openai
import pytest

from tests.server.conftest import Served

EMBEDS = {
    "task": "embed",
    "embedding_size": 8,
    "is_normalized": True,
    "prompts": {"query": "find: ", "document": "", "plain": ""},
    "default_prompt": "plain",
}


@pytest.fixture(scope="module")
def embedder():
    with Served(card=EMBEDS) as server:
        yield server


@pytest.fixture(scope="module")
def classifier():
    card = {"task": "classify", "labels": ["bad", "fine", "good"]}
    with Served(card=card, engine={"vector_size": 3}) as server:
        yield server


@pytest.fixture(scope="module")
def ranker():
    with Served(card={"task": "classify"}, engine={"vector_size": 1}) as server:
        yield server


@pytest.fixture(scope="module")
def client(embedder):
    return openai.OpenAI(base_url=embedder.url + "/v1", api_key="none", max_retries=0)


def counts(ids, size=8):
    """What the engine yields for ``ids``."""
    return [float(n) for n in np.bincount(np.array(ids) % size, minlength=size)]


def of_text(server, text, size=8):
    return counts(server.tokenizer.encode(text), size)


def refused(server, path, body, field, words):
    answer = server.post(path, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == field, error
    assert words in error["message"]


def test_the_openai_client_gets_the_vector_of_each_text_in_order(client, embedder):
    texts = ["a cat", "b", "some longer text"]
    found = client.embeddings.create(model="echo", input=texts, encoding_format="float")
    assert [item.embedding for item in found.data] == [of_text(embedder, text) for text in texts]
    assert [item.index for item in found.data] == [0, 1, 2]
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, texts))


def test_base64_is_what_the_openai_client_asks_for_and_reads(client, embedder):
    found = client.embeddings.create(model="echo", input="a cat")
    assert found.data[0].embedding == of_text(embedder, "a cat")
    body = {"input": "a cat", "encoding_format": "base64"}
    written = embedder.post("/v1/embeddings", body).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(written), "<f4").tolist() == of_text(embedder, "a cat")


@pytest.mark.parametrize(("given", "rows"), [([5, 6], [[5, 6]]), ([[5, 6], [9]], [[5, 6], [9]])])
def test_token_ids_are_taken_as_they_are(client, given, rows):
    found = client.embeddings.create(model="echo", input=given)
    assert [item.embedding for item in found.data] == [counts(row) for row in rows]


def test_dimensions_cut_vectors_and_make_their_length_1_again(client, embedder):
    whole = of_text(embedder, "a cat sat")[:6]
    (item,) = client.embeddings.create(model="echo", input="a cat sat", dimensions=6).data
    length = math.sqrt(sum(x * x for x in whole))
    assert item.embedding == pytest.approx([x / length for x in whole], rel=1e-6)


def test_a_prompt_of_the_model_goes_before_each_text(embedder):
    body = {"input": ["a", "b"], "prompt_name": "query"}
    data = embedder.post("/v1/embeddings", body).json()["data"]
    wanted = [of_text(embedder, "find: " + text) for text in "ab"]
    assert [item["embedding"] for item in data] == wanted


def test_texts_are_cut_only_where_that_is_asked_for(embedder):
    long = "x" * 600
    body = {"input": long, "truncate_prompt_tokens": 5}
    answer = embedder.post("/v1/embeddings", body).json()
    assert answer["data"][0]["embedding"] == of_text(embedder, "xxxxx")
    assert answer["usage"]["prompt_tokens"] == 5
    answer = embedder.post("/v1/embeddings", body | {"truncate_prompt_tokens": -1}).json()
    assert answer["usage"]["prompt_tokens"] == 512
    answer = embedder.post("/v1/embeddings", {"input": long})
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("more", "field", "words"),
    [
        ({"dimensions": 9}, "dimensions", "1 to 8"),
        ({"dimensions": 0}, "dimensions", "1"),
        ({"prompt_name": "x"}, "prompt_name", "query, document, plain"),
        ({"input": [5], "prompt_name": "query"}, "prompt_name", "token ids"),
        ({"input": ["a", 5]}, "input", "mixes"),
        ({"input": []}, "input", "0 tokens"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"input": [9999]}, "input", "9999"),
        ({"encoding_format": "int8"}, "encoding_format", "int8"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "0"),
        ({"lora_path": "x"}, "lora_path", "not supported"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(embedder, more, field, words):
    body = {"input": "a"} | more
    if more.get("input") == []:
        field = None
    refused(embedder, "/v1/embeddings", body, field, words)


def test_sizes_that_the_configuration_lists_are_the_only_ones():
    with Served(card=EMBEDS | {"dimensions": [2, 4]}) as server:
        assert server.post("/v1/embeddings", {"input": "a", "dimensions": 4}).status_code == 200
        refused(server, "/v1/embeddings", {"input": "a", "dimensions": 3}, "dimensions", "2, 4")


def test_encode_answers_as_sglang_does(embedder):
    one = embedder.post("/encode", {"text": "a cat", "rid": "mine"}).json()
    assert one["embedding"] == of_text(embedder, "a cat")
    assert one["meta_info"]["id"] == "mine"
    assert one["meta_info"]["prompt_tokens"] == 5
    several = embedder.post("/encode", {"input_ids": [[5, 6], [7]]}).json()
    assert [item["embedding"] for item in several] == [counts([5, 6]), counts([7])]
    refused(embedder, "/encode", {"text": "a", "image_data": "x"}, "image_data", "text only")
    pair = {"text": [["a", "b"]], "image_data": ["x"]}
    refused(embedder, "/encode", pair, "image_data", "pairs")
    many = {"text": ["a", "b"], "video_data": ["x"]}
    refused(embedder, "/encode", many, "video_data", "1 entries for 2 prompts")
    refused(embedder, "/encode", {}, "text", "exactly one")


def test_cohere_gets_vectors_by_kind_and_input_types_are_prompts(embedder):
    body = {"model": "echo", "texts": ["a", "b"], "input_type": "search_query"}
    kinds = {"embedding_types": ["float", "base64"]}
    answer = embedder.post("/v2/embed", body | kinds).json()
    wanted = [of_text(embedder, "find: " + text) for text in "ab"]
    assert answer["embeddings"]["float"] == wanted
    read = [np.frombuffer(base64.b64decode(x), "<f4") for x in answer["embeddings"]["base64"]]
    assert [row.tolist() for row in read] == wanted


def test_the_ollama_client_gets_vectors(embedder):
    client = ollama.Client(host=embedder.url)
    found = client.embed(model="echo", input=["a cat", "b"])
    assert found.embeddings == [of_text(embedder, "a cat"), of_text(embedder, "b")]
    assert found.prompt_eval_count == 6
    assert client.embeddings(model="echo", prompt="b").embedding == of_text(embedder, "b")
    assert client.embed(model="echo", input="x" * 600).prompt_eval_count == 512
    with pytest.raises(ollama.ResponseError, match="512"):
        client.embed(model="echo", input="x" * 600, truncate=False)


def cosine(left, right):
    return float(np.dot(left, right) / np.linalg.norm(left) / np.linalg.norm(right))


def test_documents_come_in_the_order_of_their_likeness_to_the_query(embedder):
    documents = ["zzzz", "cat", "a cat sat"]
    query = of_text(embedder, "find: " + "cat")
    scores = [cosine(query, of_text(embedder, text)) for text in documents]
    body = {"query": "cat", "documents": [documents[0], {"text": "cat"}, documents[2]]}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        answer = embedder.post(path, body | {"top_n": 2, "return_documents": True}).json()
        order = sorted(range(3), key=lambda n: -scores[n])[:2]
        assert [result["index"] for result in answer["results"]] == order
        got = [result["relevance_score"] for result in answer["results"]]
        assert got == pytest.approx([scores[n] for n in order])
        assert [result["document"]["text"] for result in answer["results"]] == [
            documents[n] for n in order
        ]


def test_a_cross_encoder_reads_query_and_document_together(ranker):
    body = {"query": "cat", "documents": ["a", "abcd"]}
    answer = ranker.post("/v1/rerank", body).json()
    assert [result["index"] for result in answer["results"]] == [1, 0]
    got = [result["relevance_score"] for result in answer["results"]]
    assert got == pytest.approx([1 / (1 + math.exp(-7)), 1 / (1 + math.exp(-4))])
    assert "document" not in answer["results"][0]


def test_scores_without_an_activation_stay_as_they_are():
    with Served(
        card={"task": "classify", "is_bounded": False}, engine={"vector_size": 1}
    ) as server:
        answer = server.post("/v1/score", {"query": "cat", "items": ["a", "abcd"]}).json()
        assert answer["scores"] == [[4.0], [7.0]]


def test_a_reranker_that_says_yes_or_no_reads_query_and_document_in_a_chat():
    body = {"query": "pets", "documents": ["A car stops.", {"text": "A cat sits."}]}
    with Served(card={"verdict_ids": [7, 9]}) as server:
        answer = server.post("/v1/rerank", body | {"instruct": "Find animals."}).json()
        ranked = {item["index"]: item["relevance_score"] for item in answer["results"]}
        pairs = {"text_1": "pets", "text_2": ["A car stops.", "A cat sits."]}
        scored = server.post("/v1/score", pairs | {"instruct": "Find animals."}).json()["data"]
        assert {item["index"]: item["score"] for item in scored} == pytest.approx(ranked)
        assert all(0 < score < 1 for score in ranked.values())
        labels = {"query": "pets", "items": ["a"], "label_token_ids": [5]}
        assert len(server.post("/v1/score", labels).json()["scores"]) == 1
        cut = body | {"max_tokens_per_doc": 9}
        refused(server, "/v1/rerank", cut, "max_tokens_per_doc", "not cut")


def test_models_that_take_no_instruction_refuse_one(embedder, ranker):
    body = {"query": "pets", "documents": ["A car stops."], "instruct": "Find animals."}
    for server in (embedder, ranker):
        refused(server, "/v1/rerank", body, "instruct", "takes none")
        pair = {"text_1": "a", "text_2": "b", "instruct": "Find animals."}
        refused(server, "/v1/score", pair, "instruct", "takes none")


def test_a_classifier_with_several_labels_ranks_nothing(classifier):
    body = {"query": "cat", "documents": ["a"]}
    refused(classifier, "/v1/rerank", body, "model", "3 labels")


def test_pairs_of_texts_are_scored_one_with_all_or_each_with_its_own(embedder):
    texts = {text: of_text(embedder, text) for text in ("cat", "act", "dog")}
    body = {"text_1": "cat", "text_2": ["act", "dog"]}
    answer = embedder.post("/v1/score", body).json()
    got = [item["score"] for item in answer["data"]]
    assert got == pytest.approx([cosine(texts["cat"], texts[text]) for text in ("act", "dog")])
    body = {"text_1": ["cat", "dog"], "text_2": ["act", "dog"]}
    got = [item["score"] for item in embedder.post("/v1/score", body).json()["data"]]
    assert got == pytest.approx([1.0, 1.0])
    wrong = {"text_1": ["cat", "dog"], "text_2": ["a", "b", "c"]}
    refused(embedder, "/v1/score", wrong, "text_1", "2 texts and text_2 3")


def test_labels_are_scored_after_each_item_by_a_model_that_generates(served):
    body = {"query": "q:", "items": ["a", "b"], "label_token_ids": [7, 9]}
    plain = served.post("/v1/score", body).json()
    assert plain["object"] == "scoring"
    assert len(plain["scores"]) == 2
    soft = served.post("/v1/score", body | {"apply_softmax": True}).json()["scores"]
    for one, other in zip(plain["scores"], soft, strict=True):
        assert other == pytest.approx([value / sum(one) for value in one])
    refused(
        served, "/v1/score", {"query": "q", "items": ["a"]}, "label_token_ids", "label_token_ids"
    )
    refused(served, "/v1/score", body | {"temperature": 2.0}, "temperature", "apply_softmax")
    refused(served, "/v1/score", {"text_1": "a", "text_2": "b"}, "query", "query and items")


def test_classes_of_texts_have_a_label_and_probabilities(classifier):
    answer = classifier.post("/v1/classify", {"input": ["abc", "c"]}).json()
    for item, text in zip(answer["data"], ["abc", "c"], strict=True):
        raw = np.array(of_text(classifier, text, 3))
        probs = np.exp(raw) / np.exp(raw).sum()
        assert item["probs"] == pytest.approx(probs.tolist())
        assert item["label"] == ["bad", "fine", "good"][int(raw.argmax())]
        assert item["num_classes"] == 3
    raw = classifier.post("/classify", {"text": "abc"}).json()["embedding"]
    assert raw == of_text(classifier, "abc", 3)


CHAT = {"messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "x"}),
        ("/generate", {"text": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/classify", {"input": "x"}),
    ],
)
def test_routes_of_other_tasks_are_refused_and_name_the_model_s(embedder, path, body):
    answer = embedder.post(path, body)
    assert answer.status_code == 400
    assert "embeds texts (task embed)" in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "not_supported"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "x"}),
        ("/encode", {"text": "x"}),
        ("/classify", {"text": "x"}),
        ("/v2/embed", {"texts": ["x"]}),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}),
        ("/v1/classify", {"input": "x"}),
    ],
)
def test_a_model_that_generates_refuses_what_asks_for_vectors(served, path, body):
    answer = served.post(path, body)
    assert answer.status_code == 400
    assert "generates text (task generate)" in answer.json()["error"]["message"]


def test_the_model_s_task_is_told(embedder, served):
    assert embedder.get("/model_info").json()["task"] == "embed"
    assert embedder.get("/model_info").json()["is_generation"] is False
    assert served.get("/model_info").json()["is_generation"] is True


@pytest.fixture(scope="module")
def of_tokens():
    card = EMBEDS | {"token_tasks": ["token_embed", "token_classify"], "first_id": 97}
    with Served(card=card) as server:
        yield server


@pytest.fixture(scope="module")
def steps():
    card = {
        "task": "classify",
        "token_tasks": ["token_classify"],
        "scores_steps": True,
        "step_id": 43,
    }
    with Served(card=card, engine={"vector_size": 2}) as server:
        yield server


def test_pooling_gives_vectors_of_texts_and_of_their_tokens(of_tokens):
    body = {"input": [[97, 98, 99], [5, 0]], "model": "echo"}
    answer = of_tokens.post("/pooling", body).json()
    assert answer["object"] == "list"
    assert [item["data"] for item in answer["data"]] == [counts([97, 98, 99]), counts([5, 0])]
    assert of_tokens.post("/pooling", body | {"task": "embed"}).json()["data"] == answer["data"]
    first, second = of_tokens.post("/pooling", body | {"task": "token_embed"}).json()["data"]
    assert first["token_ids"] == [98, 99]  # without the one that begins it
    assert first["data"] == [counts([98]), counts([99])]
    assert second["data"] == [counts([5]), counts([0])]
    weights = of_tokens.post("/pooling", body | {"task": "token_classify"}).json()["data"]
    assert [item["token_ids"] for item in weights] == [[98, 99], [5, 0]]
    packed = body | {"task": "token_embed", "encoding_format": "base64"}
    (raw, _) = of_tokens.post("/pooling", packed).json()["data"]
    flat = np.frombuffer(base64.b64decode(raw["data"]), "<f4").reshape(2, 8)
    assert flat.tolist() == first["data"]


def test_pooling_refuses_what_the_model_does_not_yield(of_tokens, embedder, classifier, served):
    body = {"input": "a"}
    refused(of_tokens, "/pooling", body | {"task": "classify"}, "task", "served for 'embed'")
    refused(embedder, "/pooling", body | {"task": "token_embed"}, "task", "yields pool")
    cut = body | {"task": "token_embed", "dimensions": 4}
    refused(of_tokens, "/pooling", cut, "dimensions", "not cut")
    refused(of_tokens, "/pooling", body | {"dimensions": 9}, "dimensions", "1 to 8")
    refused(served, "/pooling", body, "model", "generates text")
    (item,) = classifier.post("/pooling", body).json()["data"]
    assert sum(item["data"]) == pytest.approx(1)


def test_steps_of_an_answer_are_scored_one_by_one(steps):
    ids = [5, 6, 43, 9, 43, 8]
    want = [1 / (1 + math.exp(-1)), 1 / (1 + math.e)]  # softmax of counts: 43 is odd
    for path in ("/classify", "/encode"):
        got = steps.post(path, {"input_ids": ids}).json()["embedding"]
        assert got == [pytest.approx(want[::-1]), pytest.approx(want[::-1])]
    (item,) = steps.post("/pooling", {"input": ids}).json()["data"]
    assert item["data"] == [pytest.approx(want[::-1])] * 2
    assert item["token_ids"] == [43, 43]
    assert steps.post("/classify", {"input_ids": [5]}).json()["embedding"] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/v1/classify", {"input": "a"}),
    ],
)
def test_a_model_of_steps_scores_no_wholes(steps, path, body):
    refused(steps, path, body, "model", "each step")


def test_a_reward_model_has_its_last_token_added_where_a_text_lacks_it():
    with Served(card={"task": "classify", "last_id": 7}, engine={"vector_size": 9}) as server:
        for ids in ([5, 6], [5, 6, 7]):
            answer = server.post("/classify", {"input_ids": ids}).json()
            assert answer["embedding"] == counts([5, 6, 7], 9)
            assert answer["meta_info"]["prompt_tokens"] == 3
