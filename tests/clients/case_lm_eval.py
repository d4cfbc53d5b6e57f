"""lm-eval: generation, chats and likelihoods, on a task of three questions made here."""

import json
import tempfile
from pathlib import Path

from commands import run
from steps import MODEL, TOKENIZER, URL, attempt

QUESTIONS = [
    {"question": "The capital of France is", "choices": [" Paris", " a fish"], "answer": 0},
    {"question": "One, two,", "choices": [" seven hats", " three"], "answer": 1},
    {"question": "The sky is", "choices": [" blue", " made of tin cans"], "answer": 0},
]
GENERATE = """
task: small_gen
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}]
"""
CHOOSE = """
task: small_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
target_delimiter: ""
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
folder = Path(tempfile.mkdtemp())
data = folder / "data.jsonl"
data.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
(folder / "gen.yaml").write_text(GENERATE.format(data=data))
(folder / "choice.yaml").write_text(CHOOSE.format(data=data))


def evaluate(kind, task, args, *more):
    output = folder / f"{kind}-{task}"
    run(
        "lm_eval", "run", "--model", kind, "--model_args", f"model={MODEL},{args}",
        "--include_path", str(folder), "--tasks", task, "--output_path", str(output), *more,
    )  # fmt: skip
    (found,) = output.rglob("results*.json")
    return json.loads(found.read_text())["results"][task]


TEXT = f"base_url={URL}/v1/completions,tokenizer_backend=None,tokenized_requests=False"
IDS = f"base_url={URL}/v1/completions,tokenizer_backend=huggingface,tokenizer={TOKENIZER}"


def generate():
    evaluate("local-completions", "small_gen", TEXT)


def chat():
    args = f"base_url={URL}/v1/chat/completions"
    evaluate("local-chat-completions", "small_gen", args, "--apply_chat_template")


def likelihood():
    found = evaluate("local-completions", "small_choice", IDS)
    assert found["acc,none"] == 1.0, found


attempt("local-completions: generate_until", generate)
attempt("local-chat-completions: generate_until", chat)
attempt("local-completions: loglikelihood, by token ids", likelihood)
