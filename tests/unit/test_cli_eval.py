"""What `headstock eval` asks of a model, and what it refuses; lm-eval itself where it is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from headstock.cli import evaluate, main
from headstock.cli.eval_scorer import BATCH, Likelihood, Scorer, to_params
from headstock.errors import ConfigError


class Model:
    """A model of letters: an id is a letter, and each has its number's logprob, negative.

    The likeliest letter is always the one after the letter before, as in the alphabet.
    """

    def __init__(self, *, first: int | None = None) -> None:
        self.first = first
        self.asked: list[tuple[str, Any]] = []

    def __call__(self, path: str, body: Any) -> Any:
        self.asked.append((path, body))
        if path == "/tokenize":
            return {"tokens": [self.ids(text) for text in body["prompt"]]}
        assert path == "/generate"
        if body["sampling_params"] and isinstance(body["sampling_params"], list):
            return [{"text": "".join(map(chr, reversed(ids)))} for ids in body["input_ids"]]
        return [
            {"meta_info": self.scores(ids, begin)}
            for ids, begin in zip(body["input_ids"], body["logprob_start_len"], strict=True)
        ]

    def ids(self, text: str) -> list[int]:
        return [*([] if self.first is None else [self.first]), *map(ord, text)]

    def scores(self, ids: list[int], begin: int) -> dict[str, Any]:
        rest: Sequence[int] = ids[begin + 1 :]
        before = ids[begin : begin + len(rest)]
        return {
            "input_token_logprobs": [
                [None, ids[begin], None],
                *([-one, one, None] for one in rest),
            ],
            "input_top_logprobs": [None, *([[-1.0, one + 1, None]] for one in before)],
        }


def test_a_continuation_is_scored_after_its_context() -> None:
    model = Model()
    found = Scorer(model, 100).likelihoods([("ab", "cd"), ("ab", "ca")])
    assert found[0] == Likelihood(-float(ord("c") + ord("d")), True)
    assert found[1] == Likelihood(-float(ord("c") + ord("a")), False)
    (_, body) = model.asked[-1]
    assert body["logprob_start_len"] == [1, 1]
    assert body["sampling_params"]["max_new_tokens"] == 0


def test_spaces_between_belong_to_the_continuation() -> None:
    (found,) = Scorer(Model(), 100).likelihoods([("a ", "b")])
    assert found.logprob == -(ord(" ") + ord("b"))


def test_without_a_context_the_first_token_is_scored_where_something_stands_before() -> None:
    (bare,) = Scorer(Model(), 100).likelihoods([("", "ab")])
    assert bare.logprob == -ord("b")
    model = Model(first=1)
    (whole,) = Scorer(model, 100, bos_id=1).likelihoods([("", "ab")])
    assert whole.logprob == -(ord("a") + ord("b"))


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    model = Model()
    (found,) = Scorer(model, 4).likelihoods([("abcdef", "gh")])
    assert found.logprob == -(ord("g") + ord("h"))
    assert model.asked[-1][1]["input_ids"] == [[ord(one) for one in "efgh"]]


def test_a_long_text_is_scored_by_parts_each_token_once() -> None:
    model = Model(first=1)
    text = "abcdefghij"
    assert Scorer(model, 4, bos_id=1).whole([text]) == [-sum(map(float, map(ord, text)))]
    assert max(len(ids) for ids in model.asked[-1][1]["input_ids"]) <= 4


def test_many_are_asked_in_batches() -> None:
    model = Model()
    told: list[int] = []
    Scorer(model, 100).likelihoods([("a", "b")] * (BATCH + 3), told.append)
    assert told == [BATCH, 3]


def test_contexts_are_gone_on_from_with_room_for_the_output() -> None:
    model = Model()
    texts = Scorer(model, 6).go_on(["abcdef"], [{"max_new_tokens": 4}])
    assert texts == ["fe"]


def test_generation_arguments_become_sampling_parameters() -> None:
    asked = {"until": ["\n", ""], "max_gen_toks": 7, "do_sample": False, "temperature": 0.7}
    assert to_params(asked) == {"temperature": 0.0, "max_new_tokens": 7, "stop": ["\n"]}
    assert to_params({"temperature": 0.5, "seed": 3})["sampling_seed"] == 3
    with pytest.raises(ConfigError, match="'num_beams', which is not known"):
        to_params({"num_beams": 4})


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    assert main(["eval", "x", "--url", "http://127.0.0.1:1"]) == 2
    assert "pip install 'headstock[eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["x", "--url", "http://a", "--dtype", "float32"], "--dtype sets up an engine"),
        (["x", "--limit", "0"], "--limit is 0"),
        (["x", "--num-fewshot", "-1"], "--num-fewshot is -1"),
    ],
)
def test_settings_that_do_nothing_are_refused(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *words]) == 2
    assert says in capsys.readouterr().err


TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {data_files: DATA}
test_split: train
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""
ROWS = [
    {"country": "France", "choices": ["Rome", "Paris", "Berlin"], "answer": 1},
    {"country": "Italy", "choices": ["Rome", "Paris", "Berlin"], "answer": 0},
    {"country": "Germany", "choices": ["Rome", "Paris", "Berlin"], "answer": 2},
]


@pytest.mark.slow
def test_a_task_on_local_data_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="pip install headstock[eval]")
    from headstock.checkpoint.pull import cached_path, find

    if not cached_path(find("smollm2")).is_file():
        pytest.skip("smollm2 was never pulled: `headstock pull smollm2`")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "capitals.yaml").write_text(TASK.replace("DATA", str(data)))
    out = tmp_path / "out.json"
    words = ["capitals", "--tasks-folder", str(tmp_path), "--output-file", str(out)]
    sizes = ["--cache-tokens", "4096", "--max-model-len", "1024"]
    assert main(["eval", *words, "--model", "smollm2", *sizes]) == 0
    assert "capitals  acc" in capsys.readouterr().out
    assert json.loads(out.read_text())["results"]["capitals"]["acc,none"] >= 2 / 3
    assert main(["eval", "nothing", "--tasks-folder", str(tmp_path), "--model", "smollm2"]) == 2


def test_the_table_has_a_row_for_each_metric() -> None:
    results = {
        "t": {"acc,none": 0.5, "acc_stderr,none": 0.1, "exact_match,strict": 1.0, "alias": "t"}
    }
    lines = evaluate._table(results).splitlines()
    assert lines[1].split() == ["t", "acc", "0.5000", "±", "0.1000"]
    assert lines[2].split() == ["t", "exact_match", "(strict)", "1.0000"]
