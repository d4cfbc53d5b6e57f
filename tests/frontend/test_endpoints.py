"""What other endpoints are asked, and how their answers are read."""

import asyncio
import json

import httpx
import pytest

import headstock as hs


class Fake:
    """An endpoint that answers from a list, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.bodies = []
        self.headers = []
        self.client = httpx.AsyncClient(transport=httpx.MockTransport(self.answer))

    def answer(self, request):
        self.bodies.append(json.loads(request.content))
        self.headers.append(request.headers)
        answer = self.answers.pop(0)
        if isinstance(answer, httpx.Response):
            return answer
        if isinstance(answer, list):
            lines = "".join(f"event: x\ndata: {json.dumps(item)}\n\n" for item in answer)
            return httpx.Response(200, text=lines + "data: [DONE]\n\n")
        return httpx.Response(200, json=answer)

    def openai(self, **more):
        return hs.OpenAI("m", "key", base_url="http://fake/v1", client=self.client, **more)

    def anthropic(self):
        return hs.Anthropic("m", "key", base_url="http://fake", client=self.client)


def chat(text, **more):
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 9, "completion_tokens": 2,
             "prompt_tokens_details": {"cached_tokens": 4}}  # fmt: skip
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"choices": [choice], "usage": usage, **more}


def message(*blocks, reason="end_turn"):
    usage = {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 4}
    return {"content": list(blocks), "stop_reason": reason, "usage": usage}


@hs.function
def ask(s, prefix=""):
    s += hs.system("be brief")
    s += hs.user("hi")
    s += hs.assistant(prefix, hs.gen("x"))


def test_a_chat_of_openai():
    fake = Fake(chat("hello"))
    state = run(ask, fake.openai())
    assert state["x"] == "hello"
    (body,) = fake.bodies
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi"},
        ],
        "max_tokens": 7,
        "stop": "\n",
        "seed": 3,
    }
    assert fake.headers[0]["authorization"] == "Bearer key"
    meta = state.get_meta_info("x")
    assert (meta["prompt_tokens"], meta["cached_tokens"], meta["completion_tokens"]) == (9, 4, 2)


def run(program, backend, **more):
    return program.run(max_new_tokens=7, stop="\n", sampling_seed=3, backend=backend, **more)


def test_a_turn_that_has_text_is_gone_on_with():
    fake = Fake(chat("hello"))
    run(ask, fake.openai(), prefix="so: ")
    (body,) = fake.bodies
    assert body["messages"][-1] == {"role": "assistant", "content": "so: "}
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False


def test_openai_itself_cannot_go_on_with_a_turn():
    fake = Fake()
    with pytest.raises(hs.ProgramError, match="cannot continue"):
        run(ask, fake.openai(can_continue=False), prefix="so: ")
    assert not fake.bodies


def test_a_pattern_is_asked_for_as_a_field():
    fake = Fake(chat('{"value": "42"}'))

    @hs.function
    def program(s):
        s += hs.user("how many?")
        s += hs.assistant(hs.gen("x", type=int))
        s += hs.user("sure?")

    state = program.run(backend=fake.openai())
    assert state["x"] == 42
    assert state.messages()[1]["content"] == "42"
    schema = fake.bodies[0]["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["required"] == ["value"]


def test_a_select_of_a_chat_asks_for_a_name():
    fake = Fake(chat('{"value": "no"}'))

    @hs.function
    def program(s):
        s += hs.user("sure?")
        s += hs.assistant(hs.select("x", ["yes", "no"]))

    assert program.run(backend=fake.openai())["x"] == "no"
    schema = fake.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["value"]["enum"] == ["yes", "no"]


def test_a_choice_that_is_none_is_an_error():
    fake = Fake(chat('{"value": "maybe"}'))

    @hs.function
    def program(s):
        s += hs.user("sure?")
        s += hs.assistant(hs.select("x", ["yes", "no"]))

    with pytest.raises(hs.ProgramError, match="'maybe'"):
        program.run(backend=fake.openai())


def test_images_go_to_a_chat():
    fake = Fake(chat("a cat"))

    @hs.function
    def program(s):
        s += hs.user("what is this?", hs.image(b"\x89PNG"))
        s += hs.assistant(hs.gen("x"))

    program.run(backend=fake.openai())
    text, image = fake.bodies[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is this?"}
    assert image == {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}


def test_a_number_of_frames_is_refused_where_the_api_has_none():
    fake = Fake(chat("a cat"))

    @hs.function
    def program(s, frames):
        s += hs.user("what is this?", hs.video(b"GIF89a", frames))
        s += hs.assistant(hs.gen("x"))

    with pytest.raises(hs.ProgramError, match="no number of frames"):
        program.run(8, backend=fake.openai())
    program.run(None, backend=fake.openai())
    assert fake.bodies[0]["messages"][0]["content"][1]["type"] == "video_url"


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_endpoint_is_asked_again(status, monkeypatch):
    from headstock.frontend.backends import endpoint

    monkeypatch.setattr(endpoint, "WAITS_S", (0.001, 0.01))
    busy = httpx.Response(status, json={"error": {"message": "busy"}}, headers={"retry-after": "1"})
    fake = Fake(busy, busy, chat("hello"))
    assert run(ask, fake.openai())["x"] == "hello"
    assert len(fake.bodies) == 3


def test_a_refusal_is_told_in_its_words():
    refusal = {"error": {"message": "bad thing", "code": "bad", "param": "stop"}}
    fake = Fake(httpx.Response(400, json=refusal))
    with pytest.raises(hs.ProgramError, match="bad thing") as caught:
        run(ask, fake.openai())
    assert caught.value.code == "bad"


def test_a_stream_of_openai():
    parts = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"index": 0, "delta": {"content": "he"}}]},
        {"choices": [{"index": 0, "delta": {"content": "llo"}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    ]
    fake = Fake(parts)
    state = ask.run(backend=fake.openai(), stream=True)
    assert "".join(state.text_iter("x")) == "hello"
    assert state.get_meta_info("x")["finish_reason"]["type"] == "length"


def test_a_chat_of_anthropic():
    fake = Fake(message({"type": "text", "text": "hello"}))
    state = ask.run(max_new_tokens=7, stop="\n", temperature=0.5, backend=fake.anthropic())
    assert state["x"] == "hello"
    assert fake.bodies == [
        {
            "model": "m",
            "system": "be brief",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 7,
            "stop_sequences": ["\n"],
            "temperature": 0.5,
        }
    ]
    assert fake.headers[0]["x-api-key"] == "key"
    meta = state.get_meta_info("x")
    assert (meta["prompt_tokens"], meta["cached_tokens"]) == (9, 4)


def test_anthropic_goes_on_with_a_turn_and_is_asked_n_times():
    fake = Fake(message({"type": "text", "text": "a"}), message({"type": "text", "text": "b"}))
    state = ask.run(prefix="so: ", n=2, backend=fake.anthropic())
    assert sorted(state["x"]) == ["a", "b"]
    assert fake.bodies[0]["messages"][-1] == {"role": "assistant", "content": "so: "}


def test_a_type_is_a_tool_of_anthropic():
    fake = Fake(message({"type": "tool_use", "input": {"value": "false"}}, reason="tool_use"))

    @hs.function
    def program(s):
        s += hs.user("sure?")
        s += hs.assistant(hs.gen("x", type=bool))

    assert program.run(backend=fake.anthropic())["x"] is False
    (body,) = fake.bodies
    assert body["tool_choice"] == {"type": "tool", "name": "answer"}
    assert body["tools"][0]["input_schema"]["properties"]["value"]["enum"] == ["true", "false"]


def test_images_go_to_anthropic_and_videos_do_not(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"JPEG")
    fake = Fake(message({"type": "text", "text": "a cat"}))

    @hs.function
    def program(s, *media):
        s += hs.user("what is this?", *media)
        s += hs.assistant(hs.gen("x"))

    backend = fake.anthropic()
    program.run(hs.image(tmp_path / "a.jpg"), hs.image("https://x/y.png"), backend=backend)
    text, one, two = fake.bodies[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is this?"}
    source = {"type": "base64", "media_type": "image/jpeg", "data": "SlBFRw=="}
    assert one == {"type": "image", "source": source}
    assert two == {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    with pytest.raises(hs.ProgramError, match="takes no videos"):
        program.run(hs.video(b"x"), backend=backend)


def test_keys_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from-outside")
    fake = Fake(chat("hello"))
    backend = hs.OpenAI("m", base_url="http://fake/v1", client=fake.client)
    run(ask, backend)
    assert fake.headers[0]["authorization"] == "Bearer from-outside"


def test_a_stream_of_anthropic():
    events = [
        {"type": "message_start", "message": message()},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "he"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "y"}},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"},
         "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]  # fmt: skip
    fake = Fake(events)
    state = ask.run(backend=fake.anthropic(), stream=True)
    assert list(state.text_iter("x")) == ["he", "y"]
    meta = state.get_meta_info("x")
    assert (meta["finish_reason"]["type"], meta["completion_tokens"]) == ("length", 5)


def test_anthropic_refuses_what_it_has_not():
    fake = Fake()
    with pytest.raises(hs.ProgramError, match="no parameter 'min_p'"):
        ask.run(min_p=0.1, backend=fake.anthropic())

    @hs.function
    def plain(s):
        s += "a" + hs.gen("x")

    with pytest.raises(hs.ProgramError, match="knows turns only"):
        plain.run(backend=fake.anthropic())


def test_an_engine_tells_from_its_own_thread():
    from headstock.programs import Outcome, StepDone, StepReport

    class Engine:
        async def async_program(self, program, emit=None):
            done = StepDone(step="1", state="main", name="x", texts=["hey"], report=StepReport())
            await asyncio.to_thread(emit, done)
            return Outcome()

        def flush_cache(self):
            return 0

    @hs.function
    def program(s):
        s += "a" + hs.gen("x")

    assert program.run(backend=Engine()).text() == "ahey"
