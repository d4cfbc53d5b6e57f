"""`POST /v1/programs` over an engine that echoes its prompt: what a program is answered with."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from headstock.wire.messages import Abort, Submit


def gen(name, tokens=4, **more):
    params = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
    return {"type": "gen", "name": name, "sampling_params": params, **more}


def run(served, *steps, status=200, **body):
    answer = served.post("/v1/programs", json={"steps": list(steps), **body})
    assert answer.status_code == status, answer.text
    return answer.json()


def refused(served, *steps, **body):
    return run(served, *steps, status=400, **body)["error"]


def events(served, *steps, **body):
    body = {"steps": list(steps), "stream": True, **body}
    with httpx.stream("POST", served.url + "/v1/programs", json=body, timeout=20) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def text(value, **more):
    return {"type": "text", "text": value, **more}


def test_a_gen_goes_on_with_the_text_and_sets_its_variable(served):
    found = run(served, text("ab"), gen("x"), text("!"))
    assert found["variables"] == {"x": "abab"}
    assert found["states"]["main"]["text"] == "ababab!"


def test_a_later_step_sees_what_an_earlier_one_brought(served):
    steps = text("ab"), gen("x", 2), text(["<", {"var": "x"}, ">"]), gen("y", 8)
    assert run(served, *steps)["variables"]["y"] == "abab<ab>"


def test_turns_go_through_the_chat_template(served):
    steps = text("hi", role="user"), text("A:", role="assistant"), gen("x", 200)
    found = run(served, *steps)
    rendered = "user:hiassistant:A:"  # special tokens are not shown
    assert found["variables"]["x"].startswith(rendered + rendered[:5])
    messages = found["states"]["main"]["messages"]
    assert messages[0] == {"role": "user", "content": "hi"}
    assert messages[1]["content"] == "A:" + found["variables"]["x"]


def test_n_texts_are_a_list_and_the_first_one_goes_on(served):
    step = gen("x", 2)
    step["sampling_params"]["n"] = 3
    found = run(served, text("ab"), step)
    assert found["variables"]["x"] == ["ab", "ab", "ab"]
    assert found["states"]["main"]["text"] == "abab"


def test_forks_start_from_their_parent_and_a_join_gathers(served):
    found = run(
        served,
        text("ab"),
        {"type": "fork", "into": ["one", "two"]},
        text("1", state="one"),
        gen("x", 3, state="one"),
        text("2", state="two"),
        gen("x", 3, state="two"),
        gen("y", 2, state="two"),
        {"type": "join", "states": ["one", "two"]},
        text(["|", {"var": "x", "index": 1}]),
    )
    assert found["variables"] == {"x": ["ab1", "ab2"], "y": ["ab"]}
    assert found["states"]["main"]["text"] == "ab|ab2"
    assert found["states"]["one"]["text"] == "ab1ab1"


def test_a_join_may_take_over_the_text(served):
    found = run(
        served,
        text("ab"),
        {"type": "fork", "into": ["one", "two"]},
        text("1", state="one"),
        text("2", state="two"),
        {"type": "join", "states": ["one", "two"], "mode": "concatenate"},
    )
    assert found["states"]["main"]["text"] == "ab12"


def test_states_that_were_forked_before_can_be_joined(served):
    begun = {"text": 2}
    states = {
        "main": {"text": "ab"},
        "one": {"text": "ab1", "variables": {"x": "X", "y": "Y"}, "fresh": ["x"], "begun": begun},
    }
    join = {"type": "join", "states": ["one"], "mode": "concatenate"}
    found = run(served, join, states=states)
    assert found["states"]["main"] == {"text": "ab1", "variables": {"x": ["X"]}}


def test_a_join_takes_over_turns_too(served):
    found = run(
        served,
        text("q", role="user"),
        text("a", role="assistant"),
        {"type": "fork", "into": ["one", "two"]},
        text("1", state="one"),
        text("2", state="two"),
        text("more", role="user", state="two"),
        {"type": "join", "states": ["one", "two"], "mode": "concatenate"},
    )
    contents = [message["content"] for message in found["states"]["main"]["messages"]]
    assert contents == ["q", "a12", "more"]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"var": "x", "equals": " ab "}, "yes"),
        ({"var": "x", "equals": "b"}, "no"),
        ({"var": "x", "contains": "b"}, "yes"),
        ({"var": "x", "one_of": ["cd", "ab"]}, "yes"),
        ({"var": "x", "is_set": False}, "no"),
        ({"all_of": [{"var": "x", "equals": "ab"}, {"var": "x", "contains": "c"}]}, "no"),
        ({"any_of": [{"var": "x", "equals": "ab"}, {"var": "x", "contains": "c"}]}, "yes"),
        ({"none_of": [{"var": "x", "contains": "c"}]}, "yes"),
    ],
)
def test_conditions_choose_the_steps(served, condition, expected):
    when = {"type": "when", "if": condition, "then": [text("yes")], "else": [text("no")]}
    found = run(served, text("ab"), gen("x", 2), when)
    assert found["states"]["main"]["text"] == "abab" + expected


def test_the_side_that_is_not_taken_generates_nothing(served):
    when = {"type": "when", "if": {"var": "x", "equals": "no"}, "then": [gen("y")]}
    found = run(served, text("ab"), gen("x", 2), when)
    assert list(found["variables"]) == ["x"]
    assert len(found["steps"]) == 1


def test_select_of_one_token_each_is_one_request_to_the_engine(served):
    served.engine.seen.clear()
    select = {"type": "select", "name": "x", "choices": ["a", "b"]}
    found = run(served, text("Q:"), select)
    (submit,) = [message for message in served.engine.seen if isinstance(message, Submit)]
    assert submit.asked_ids == [ord("a") + 3, ord("b") + 3]
    assert found["variables"]["x"] == "a"  # the echo finds all equally likely


def test_select_scores_every_choice_after_the_common_prefix(served):
    served.engine.seen.clear()
    select = {"type": "select", "name": "x", "choices": ["zz", "aaa"]}
    found = run(served, text("Q:"), select)
    submits = [message for message in served.engine.seen if isinstance(message, Submit)]
    assert [submit.prompt_logprobs_from for submit in submits] == [2, 2]
    assert all(submit.params.max_new_tokens == 0 for submit in submits)
    (step,) = found["steps"]
    likely, unlikely = -math.log(2 + ord("a") + 3), -math.log(2 + ord("z") + 3)
    assert step["report"]["scores"] == pytest.approx([unlikely, likely])
    assert step["report"]["logprobs"][1] == pytest.approx([likely] * 3)
    assert found["variables"]["x"] == "aaa"
    assert found["states"]["main"]["text"] == "Q:aaa"


def test_unconditional_likelihood_takes_away_what_a_choice_has_by_itself(served):
    select = {
        "type": "select", "name": "x", "choices": ["zz", "aaa"],
        "method": "unconditional_likelihood_normalized",
    }  # fmt: skip
    found = run(served, text("Q:"), select)
    assert found["steps"][0]["report"]["scores"] == pytest.approx([0.0, 0.0])


def test_reasoning_is_cut_out_of_the_text(served):
    prompt = "<think>why</think>so"
    found = run(served, text(prompt), gen("x", len(prompt), reasoning={}))
    assert found["variables"] == {"x": "so", "x_reasoning_content": "why"}
    assert found["states"]["main"]["text"] == prompt + "so"


def test_logprobs_are_told_where_they_are_asked_for(served):
    found = run(served, text("ab"), gen("x", 2, return_logprob=True, top_logprobs_num=2))
    (meta,) = found["steps"][0]["report"]["output"]
    assert [row[1] for row in meta["output_token_logprobs"]] == [ord("a") + 3, ord("b") + 3]
    assert len(meta["output_top_logprobs"][0]) == 2


def test_usage_counts_all_steps(served):
    usage = run(served, text("ab"), gen("x", 2), gen("y", 3))["usage"]
    assert usage == {
        "prompt_tokens": 2 + 4, "completion_tokens": 5, "total_tokens": 11, "cached_tokens": 6,
    }  # fmt: skip


def test_a_stream_tells_of_each_step_and_of_text_where_it_is_wanted(served):
    told = events(served, text("ab"), gen("x", 4, stream=True), gen("y", 2))
    deltas = [item for item in told if item["type"] == "delta"]
    assert "".join(item["text"] for item in deltas) == "abab"
    assert {item["step"] for item in deltas} == {"1"}
    done = [item for item in told if item["type"] == "step"]
    assert [(item["step"], item["texts"]) for item in done] == [("1", ["abab"]), ("2", ["ab"])]
    assert told[-1]["type"] == "done"
    assert told[-1]["usage"]["completion_tokens"] == 6


def test_an_error_before_the_first_event_is_an_ordinary_answer(served):
    bad = gen("x")
    bad["sampling_params"]["top_p"] = 7
    error = refused(served, text("ab"), bad, stream=True)
    assert error["param"] == "steps[1].top_p"


def test_an_error_after_the_first_event_ends_the_stream(served):
    bad = gen("y")
    bad["sampling_params"]["top_p"] = 7
    told = events(served, text("ab"), gen("x"), bad)
    assert told[0]["type"] == "step"
    assert told[-1]["error"]["param"] == "steps[2].top_p"


def test_variables_and_messages_may_be_there_before(served):
    state = {"messages": [{"role": "user", "content": "hi"}], "variables": {"v": "W"}}
    steps = text([{"var": "v"}], role="assistant"), gen("x", 12)
    found = run(served, *steps, states={"main": state})
    assert found["states"]["main"]["messages"][1]["content"].startswith("W")


def fork(*names, **more):
    return {"type": "fork", "into": list(names), **more}


def when(**more):
    return {"type": "when", "if": {"var": "x", "is_set": True}, **more}


@pytest.mark.parametrize(
    ("steps", "param", "words"),
    [
        ([], "steps", "no steps"),
        ([text("a", state="b")], "steps[0].state", "no state 'b'"),
        ([text("a"), text([{"var": "x"}])], "steps[1].text", "sets 'x'"),
        ([text("a"), fork("b"), fork("b")], "steps[2].into", "already"),
        (
            [fork("b"), {"type": "join", "states": ["b"]}, text("a", state="b")],
            "steps[2].state",
            "joined by steps[1]",
        ),
        ([text("a"), text("b", role="user")], "steps[1].role", "plain text"),
        ([text("a", role="user"), gen("x")], "steps[1].role", "user's"),
        ([{"type": "media", "url": "data:,"}], "steps[0].role", "no turn"),
        ([{"type": "media", "url": "data:,", "role": "user", "num_frames": 2}],
         "steps[0].num_frames", "one frame"),
        ([text("a"), gen("x"), when(then=[when(then=[text([{"var": "y"}])])])],
         "steps[2.then.0.then.0].text", "sets 'y'"),
        ([text("a"), {"type": "when", "if": {}, "then": []}], "steps[1].if", "exactly one"),
        ([text("a"), {"type": "when", "if": {"equals": "x"}}], "steps[1].if", "together"),
        ([text("a"), gen("x", "many")], "steps[1].max_new_tokens", "'many'"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_anything_runs(served, steps, param, words):
    served.engine.seen.clear()
    error = refused(served, *steps)
    assert error["param"] == param
    assert words in error["message"]
    assert not any(isinstance(message, Submit) for message in served.engine.seen)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([text("a")] * 1024, "1025 steps and states; 1024 are allowed"),
        ([text("a"), *[gen("x", 131_072)] * 2], "262144 tokens to generate; 131072"),
        (
            [text("a"), fork("1"), *[fork(str(i + 1), state=str(i)) for i in range(1, 9)]],
            "more than 8 deep",
        ),
    ],
)
def test_programs_have_limits(served, steps, words):
    error = refused(served, *steps)
    assert error["code"] == "program_too_large"
    assert words in error["message"]


def test_unknown_fields_of_steps_are_refused(served):
    error = refused(served, text("a", rolle="user"))
    assert "rolle" in error["message"]


def test_two_constraints_of_one_step_are_refused(served):
    step = gen("x")
    step["sampling_params"] |= {"regex": "a+", "json_schema": "{}"}
    error = refused(served, text("a"), step)
    assert error["param"] == "steps[1].regex"


def test_images_are_refused_by_a_model_of_text(served):
    image = {"type": "media", "url": "data:image/png;base64,", "role": "user"}
    error = refused(served, image, gen("x", role="assistant"))
    assert error["code"] == "not_supported"


def test_another_model_is_not_found(served):
    assert run(served, text("a"), status=404, model="gpt")["error"]["code"] == "model_not_found"


def test_a_full_queue_refuses_a_program_and_not_its_later_steps(monkeypatch):
    """With one place in all, forks and choices take it one after another."""
    from headstock.server import program_model
    from tests.server.conftest import Served

    monkeypatch.setattr(program_model, "LOOK_S", 0.01)
    with Served(engine={"step_s": 0.01, "limits": limits(1)}, max_live=0) as server:
        steps = [text("ab"), gen("x", 2), {"type": "fork", "into": ["1", "2"]}]
        steps += [gen("y", 9, state="1"), gen("y", 9, state="2")]
        steps += [{"type": "join", "states": ["1", "2"]}, text("Q:")]
        steps += [{"type": "select", "name": "z", "choices": ["zz", "aaa"]}]
        found = run(server, *steps)
        assert found["variables"]["y"] == ["ababababa"] * 2
        assert found["variables"]["z"] == "aaa"
        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(run, server, text("ab"), gen("x", 100))
            wait_for_live(server)
            answer = server.post("/v1/programs", json={"steps": [text("ab"), gen("x")]})
            assert answer.status_code == 429
            assert "retry-after" in answer.headers
            busy.result()


def limits(num_slots):
    from headstock.wire.steps import PageGroup, RunnerLimits

    return RunnerLimits(num_slots, 256, 512, 1000, 1, [PageGroup("full", 16, 1024, 100)])


def wait_for_live(server):
    while not server.call(lambda: server.frontdoor.num_live):
        pass


def test_a_client_that_leaves_ends_its_program():
    from tests.server.conftest import Served

    with Served(engine={"step_s": 0.05}) as server:
        body = {"steps": [text("ab"), gen("x", 400), gen("y", 400)]}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/v1/programs", json=body, timeout=0.5)
        for _ in range(100):
            if not server.call(lambda: server.frontdoor.num_live):
                break
            httpx.get(server.url + "/live")
        assert server.call(lambda: server.frontdoor.num_live) == 0
        assert any(isinstance(message, Abort) for message in server.engine.seen)
        assert sum(isinstance(message, Submit) for message in server.engine.seen) == 1
