"""Programs as they are written for SGLang: only the import is another."""

import asyncio

import pytest

import headstock as sgl


@pytest.fixture(autouse=True)
def endpoint(served):
    sgl.set_default_backend(sgl.RuntimeEndpoint(served.url))


def test_turns_in_parts_and_a_batch():
    @sgl.function
    def multi_turn_question(s, question_1, question_2):
        s += sgl.system("You are a helpful assistant.")
        s += sgl.user(question_1)
        s += sgl.assistant(sgl.gen("answer_1", max_tokens=6))
        s += sgl.user_begin()
        s += question_2
        s += sgl.user_end()
        s += sgl.assistant_begin() + sgl.gen("answer_2", max_tokens=6) + sgl.assistant_end()

    state = multi_turn_question.run(question_1="one", question_2="two", temperature=0.0)
    assert [m["role"] for m in state.messages()] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    states = multi_turn_question.run_batch(
        [{"question_1": "a", "question_2": "b"}, {"question_1": "c", "question_2": "d"}],
        num_threads=2,
        progress_bar=True,
    )
    assert all(s["answer_2"] for s in states)


def test_control_flow_on_choices():
    @sgl.function
    def tool_use(s, question):
        s += "To answer this question: " + question + ". "
        s += "I need to use a " + sgl.gen("tool", choices=["calculator", "search"]) + ". "
        if s["tool"] == "calculator":
            s += "The math expression is" + sgl.gen("expression", max_tokens=4)
        elif s["tool"] == "search":
            s += "The key word to search is" + sgl.gen("word", max_tokens=4)

    state = tool_use.run(question="1 + 1")
    assert state["tool"] in ("calculator", "search")
    assert len(state["expression" if state["tool"] == "calculator" else "word"]) == 4


def test_a_program_in_a_program_over_forks():
    @sgl.function
    def expand(s, tip):
        s += "Expand: " + tip + "\n" + sgl.gen("detailed_tip", max_tokens=5, stop="\n\n")

    @sgl.function
    def tip_suggestion(s):
        s += "Tips:\n1. Diet.\n2. Exercise.\n"
        forks = s.fork(2)
        for i, f in enumerate(forks):
            f += f"Now, expand tip {i + 1} into a paragraph:\n"
            f += sgl.gen("detailed_tip", max_tokens=5, stop="\n\n")
        s += "Tip 1:" + forks[0]["detailed_tip"] + "\n"
        s += "Tip 2:" + forks[1]["detailed_tip"] + "\n"
        s += "In summary" + sgl.gen("summary", max_tokens=3)

    state = tip_suggestion.run()
    assert state.text() == (
        "Tips:\n1. Diet.\n2. Exercise.\nTip 1:Tips:\nTip 2:Tips:\nIn summaryTip"
    )
    assert len(state["summary"]) == 3
    assert expand("Diet")["detailed_tip"]


def test_forks_by_index_copies_and_both_joins():
    @sgl.function(num_api_spec_tokens=64)
    def program(s):
        s += "ab"
        forks = s.fork(2)
        forks[0] += "c" + sgl.gen("x", max_tokens=1)
        forks[1] += "d" + sgl.gen("x", max_tokens=1)
        forks.join("concate_and_append")
        with s.copy() as other:
            other += sgl.gen("y", max_tokens=2)
        s += sgl.gen("z", max_tokens=6, stop=["c"])

    state = program.run()
    assert state["x"] == ["a", "a"]
    assert state["y"] == ["ab"]
    assert state["z"] == "ab"  # "abcada…" up to the stop
    assert state.text() == "abcadaab"


def test_streams_and_meta():
    @sgl.function
    def text_qa(s, question):
        s += "Q: " + question + "\nA:"
        s += sgl.gen("answer", stop="\n", max_tokens=8)

    state = text_qa.run(question="?", temperature=0.1, stream=True)
    assert "".join(state.text_iter("answer")) == "Q: ?"
    assert "".join(state.text_iter()) == state.text()

    async def main():
        state = text_qa.run(question="?", stream=True)
        return [out async for out in state.text_async_iter(var_name="answer")]

    assert "".join(asyncio.run(main())) == "Q: ?"
    meta = text_qa.run(question="?", return_logprob=True).get_meta_info("answer")
    assert meta["finish_reason"]["type"] == "stop"
    assert meta["output_token_logprobs"]


def test_a_bound_program_and_its_return_value():
    @sgl.function
    def program(s, a, b):
        s += a + b + sgl.gen("x", max_tokens=1)
        return s["x"]

    assert program.bind(b="z").run(a="y").ret_value == "y"
    assert program.run("k", "l").ret_value == "k"


SAMPLING = {
    "n": 1,
    "stop": ["\n"],
    "stop_token_ids": [3],
    "stop_regex": "[0-9]{9}",
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.01,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "ignore_eos": True,
}
LOGPROBS = {
    "return_logprob": True,
    "logprob_start_len": 0,
    "top_logprobs_num": 2,
    "return_text_in_logprobs": True,
}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        *((given, name) for given in ("gen", "run") for name in [*SAMPLING, *LOGPROBS]),
        ("gen", "min_tokens"),
        ("run", "use_thread"),
    ],
)
def test_every_parameter_of_a_gen_and_of_a_run_is_taken(given, name):
    values = SAMPLING | LOGPROBS | {"min_tokens": 2, "use_thread": True}
    of = {name: values[name]}
    if name in LOGPROBS:
        of["return_logprob"] = True

    @sgl.function
    def program(s, of_gen):
        s += "abc" + sgl.gen("x", max_tokens=4, **of_gen)

    state = program.run(of if given == "gen" else {}, **(of if given == "run" else {}))
    assert state["x"]
    if name in LOGPROBS:
        meta = state.get_meta_info("x")
        assert len(meta["output_token_logprobs"]) == 4
        assert len(meta["input_token_logprobs"]) == (3 if name == "logprob_start_len" else 0)


def test_a_start_of_log_probabilities_without_any_is_refused():
    @sgl.function
    def program(s):
        s += "abc" + sgl.gen("x", logprob_start_len=0)

    with pytest.raises(sgl.ProgramError, match="Set return_logprob"):
        program.run()
