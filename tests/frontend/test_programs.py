"""Programs over an engine that echoes its prompt: the same on every back end."""

import asyncio
import json
import subprocess
import sys
import threading
import time

import httpx
import pytest

import headstock as hs
from headstock.frontend import ProgramState

FOUR = {"max_tokens": 4, "ignore_eos": True}


@hs.function
def echo(s, text):
    s += text
    s += hs.gen("x", **FOUR)
    s += "!"


def test_a_program_sets_variables_and_text(backend):
    state = echo.run(text="ab", backend=backend)
    assert state["x"] == "abab"
    assert state.text() == "ababab!"
    assert "x" in state
    assert "y" not in state


@pytest.fixture
def counted(served):
    """A server's back end, and the paths that it was asked."""
    paths = []

    async def note(request):
        paths.append(request.url.path)

    client = httpx.AsyncClient(event_hooks={"request": [note]})
    return hs.HeadstockServer(served.url, client=client), paths


def test_it_is_one_request_where_nothing_is_read(counted):
    backend, paths = counted

    @hs.function
    def program(s):
        s += "ab" + hs.gen("x", **FOUR)
        forks = s.fork(3)
        for fork in forks:
            fork += hs.gen("y", **FOUR)
        forks.join()
        s += hs.select("z", ["a", "b"])

    state = program.run(backend=backend)
    assert state["y"] == ["abab"] * 3
    assert paths == ["/v1/programs"]


def test_what_is_read_parts_the_program(counted):
    backend, paths = counted

    @hs.function
    def program(s):
        s += "ab" + hs.gen("x", **FOUR)
        s += s["x"] + hs.gen("y", **FOUR)

    program.run(backend=backend)
    assert paths == ["/v1/programs"] * 2


def test_what_is_read_can_be_used_by_python(backend):
    @hs.function
    def program(s):
        s += "ab" + hs.gen("x", max_tokens=2, ignore_eos=True)
        if s["x"] == "ab":
            s += "yes"
        s += hs.gen("y", max_tokens=7, ignore_eos=True)
        return len(s["y"])

    state = program.run(backend=backend)
    assert state["y"] == "ababyes"
    assert state.ret_value == 7


def test_turns(backend):
    @hs.function
    def program(s):
        s += hs.system("be brief")
        s += hs.user("hi")
        s += hs.assistant(hs.gen("x", **FOUR))
        s += hs.user("more") + hs.assistant("so: " + hs.gen("y", **FOUR))

    state = program.run(backend=backend)
    assert state.messages() == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": state["x"]},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "so: " + state["y"]},
    ]
    assert state.text().startswith("system: be brief\nuser: hi\nassistant: ")


def test_turns_may_be_begun_and_ended(backend):
    @hs.function
    def program(s):
        s += hs.user_begin() + "a"
        s += "b" + hs.user_end()
        with s.assistant():
            s += "c"
            s += hs.gen("x", **FOUR)
        s.user("d")
        with s.assistant():
            pass

    contents = [m["content"] for m in program.run(backend=backend).messages()]
    assert [contents[0], contents[1][0], *contents[2:]] == ["ab", "c", "d", ""]


def test_forks_go_their_own_ways_and_join(backend):
    @hs.function
    def program(s):
        s += "ab"
        forks = s.fork(2)
        for index, fork in enumerate(forks):
            fork += str(index)
            fork += hs.gen("x", max_tokens=3, ignore_eos=True)
        assert forks["x"] == ["ab0", "ab1"]
        forks.join()
        s += s["x"][1]

    state = program.run(backend=backend)
    assert state["x"] == ["ab0", "ab1"]
    assert state.text() == "abab1"


@pytest.mark.parametrize("reads", [False, True])
def test_a_join_may_take_over_the_text(backend, reads):
    @hs.function
    def program(s):
        s += "ab"
        forks = s.fork(2)
        forks += [hs.gen("x", max_tokens=1, ignore_eos=True), "2"]
        if reads:
            assert forks[0]["x"] == "a"
        forks.join("concate_and_append")
        s += hs.gen("y", max_tokens=4, ignore_eos=True)

    state = program.run(backend=backend)
    assert state.text() == "aba2" + "aba2"


def test_forks_of_turns_join(backend):
    @hs.function
    def program(s):
        s += hs.user("q")
        s += hs.assistant_begin() + "a"
        forks = s.fork(2)
        forks += "1"
        assert forks[0].messages()[-1]["content"] == "a1"
        forks.join("concate_and_append")
        s += hs.assistant_end()

    assert program.run(backend=backend).messages()[-1]["content"] == "a11"


def test_select_takes_the_likeliest(backend):
    @hs.function
    def program(s):
        s += "Q:" + hs.select("x", ["zz", "aaa"])

    state = program.run(backend=backend)
    assert state["x"] == "aaa"
    scores = state.get_meta_info("x")["normalized_prompt_logprobs"]
    assert scores[1] > scores[0]


def test_greedy_token_selection(backend):
    @hs.function
    def program(s):
        method = hs.greedy_token_selection
        s += "Q:" + hs.select("x", ["az", "b"], choices_method=method)

    assert program.run(backend=backend)["x"] == "az"


def test_conditions_run_where_the_program_runs(backend):
    @hs.function
    def program(s):
        s += "ab" + hs.gen("x", max_tokens=2, ignore_eos=True)
        s += hs.when(
            hs.ref("x").equals("ab"),
            "yes" + hs.gen("y", max_tokens=3, ignore_eos=True),
            hs.gen("z", **FOUR),
        )
        s += "[" + hs.ref("x") + "]"

    state = program.run(backend=backend)
    assert state["y"] == "aba"
    assert state.text() == "ababyesaba[ab]"
    with pytest.raises(hs.ProgramError, match="no variable 'z'"):
        state["z"]


def test_a_scope_is_a_variable(backend):
    @hs.function
    def program(s):
        s += "ab"
        with s.var_scope("all"):
            s += "<" + hs.gen("x", max_tokens=2, ignore_eos=True) + ">"

    assert program.run(backend=backend)["all"] == "<ab>"


def test_n_texts(backend):
    @hs.function
    def program(s):
        s += "ab" + hs.gen("x", max_tokens=2, n=2, ignore_eos=True)

    assert program.run(backend=backend)["x"] == ["ab", "ab"]


def test_defaults_of_a_run_are_those_of_its_gens(backend):
    @hs.function
    def program(s):
        s += "ab" + hs.gen("x") + hs.gen("y", max_tokens=1)

    state = program.run(max_new_tokens=3, ignore_eos=True, backend=backend)
    assert (state["x"], state["y"]) == ("aba", "a")


def test_a_program_may_be_a_part_of_another(backend):
    @hs.function
    def outer(s):
        echo(s, "ab")
        s += "."

    assert outer.run(backend=backend).text() == "ababab!."


def test_bound_arguments(backend):
    assert echo.bind(text="ab").run(backend=backend)["x"] == "abab"


def test_a_batch_is_answered_in_order(backend):
    texts = [f"{index:03d}" for index in range(40)]
    states = echo.run_batch([{"text": text} for text in texts], backend=backend)
    assert [state["x"] for state in states] == [text + text[0] for text in texts]


def test_a_batch_may_be_iterated(backend):
    found = echo.run_batch([("ab",), ("cd",)], backend=backend, generator_style=True)
    assert [state["x"] for state in found] == ["abab", "cdcd"]


def test_a_batch_goes_on_past_a_program_that_fails(backend):
    @hs.function
    def program(s, text):
        if text == "bad":
            raise ZeroDivisionError
        s += text + hs.gen("x", top_p=7.0 if text == "worse" else 1.0, **FOUR)

    good, bad, worse = program.run_batch([("ab",), ("bad",), ("worse",)], backend=backend)
    assert good["x"] == "abab"
    assert isinstance(bad.error(), ZeroDivisionError)
    assert isinstance(worse.error(), hs.ProgramError)
    assert good.error() is None
    with pytest.raises(hs.ProgramError, match="top_p"):
        worse["x"]


def test_a_batch_shows_progress(headstock_server, capsys):
    echo.run_batch([("ab",), ("cd",)], backend=headstock_server, progress_bar=True)
    assert "2/2" in capsys.readouterr().err


def test_no_state_needs_a_thread(headstock_server):
    @hs.function
    async def program(s, text):
        s += text + hs.gen("x", **FOUR)
        forks = s.fork(4)
        forks += hs.gen("y", **FOUR)
        return [await fork.get("y") for fork in forks]

    before = threading.active_count()
    most = 0

    def watch():
        nonlocal most
        most = max(most, threading.active_count())

    states = program.run_batch(
        [("ab",)] * 50, backend=headstock_server, generator_style=True, num_threads=50
    )
    for state in states:
        watch()
        assert len(state.ret_value) == 4
    assert most <= before + 2


def test_async_programs(backend):
    @hs.function
    async def program(s, text):
        s += text + hs.gen("x", **FOUR)
        found = await s.get("x")
        await asyncio.sleep(0)
        s += found

    async def main():
        one = await program.run_async("ab", backend=backend)
        many = await program.run_batch_async([("cd",), ("ef",)], backend=backend)
        plain = await echo.run_async(text="gh", backend=backend)
        return [await state.async_text() for state in (one, *many, plain)]

    assert asyncio.run(main()) == ["ababab"[:2] + "abab" * 2, "cdcdcdcdcd", "efefefefef", "ghghgh!"]


def test_an_async_program_runs_from_plain_code_too(backend):
    @hs.function
    async def program(s):
        s += "ab" + hs.gen("x", **FOUR)
        return await s.get("x")

    assert program.run(backend=backend).ret_value == "abab"


def test_an_async_body_that_would_block_its_loop_is_refused(headstock_server):
    @hs.function
    async def program(s):
        s += "ab" + hs.gen("x", **FOUR)
        return s["x"]

    with pytest.raises(hs.ProgramError, match=r"await s\.get"):
        program.run(backend=headstock_server)


@pytest.fixture
def slow():
    from tests.server.conftest import Served

    with Served(engine={"step_s": 0.02}) as server:
        yield hs.HeadstockServer(server.url)


def test_text_comes_while_it_is_made(slow):
    state = echo.run(text="ab", stream=True, backend=slow)
    begun = time.monotonic()
    pieces, times = [], []
    for piece in state.text_iter("x"):
        pieces.append(piece)
        times.append(time.monotonic() - begun)
    assert "".join(pieces) == "abab"
    assert len(pieces) == 4
    assert times[-1] - times[0] > 0.03


def test_all_of_a_state_streams(backend):
    @hs.function
    def program(s):
        s += hs.user("hi")
        s += hs.assistant("a" + hs.gen("x", **FOUR) + hs.ref("x") + "c")
        s += hs.user("z")

    state = program.run(stream=True, backend=backend)
    pieces = list(state.text_iter())
    assert "".join(pieces) == state.text()
    assert pieces[0] == "user: hi"


def test_text_streams_to_coroutines(backend):
    async def main():
        state = echo.stream_async(text="ab", backend=backend)
        pieces = [piece async for piece in state.text_async_iter("x")]
        pairs = [p async for p in state.text_async_iter("x", return_meta_data=True)]
        return pieces, pairs

    pieces, pairs = asyncio.run(main())
    assert "".join(pieces) == "abab"
    assert pairs[-1][0] == ""
    assert pairs[-1][1]["completion_tokens"] == 4


def test_a_stream_ends_in_what_its_body_raised(headstock_server):
    @hs.function
    def program(s):
        s += "ab" + hs.gen("x", **FOUR)
        s["x"]
        raise ZeroDivisionError

    state = program.run(stream=True, backend=headstock_server)
    with pytest.raises(ZeroDivisionError):
        list(state.text_iter())
    assert isinstance(state.error(), ZeroDivisionError)


def test_reasoning_is_parted_from_the_answer(backend):
    prompt = "<think>why</think>so"

    @hs.function
    def program(s):
        s += prompt
        s += hs.separate_reasoning(
            hs.gen("x", max_tokens=len(prompt), ignore_eos=True), model_type="qwen3"
        )

    state = program.run(backend=backend)
    assert (state["x"], state["x_reasoning_content"]) == ("so", "why")
    assert state.text() == prompt + "so"


def test_meta_info_is_as_that_of_generate(headstock_server):
    @hs.function
    def program(s):
        s += "ab" + hs.gen("x", return_logprob=True, **FOUR)

    meta = program.run(backend=headstock_server).get_meta_info("x")
    assert meta["finish_reason"] == {"type": "length", "length": 4}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (2, 4, 3)
    assert len(meta["output_token_logprobs"]) == 4


def test_a_run_may_ask_for_logprobs_of_all_gens(headstock_server):
    state = echo.run(
        text="ab", return_logprob=True, top_logprobs_num=2, use_thread=False,
        backend=headstock_server,
    )  # fmt: skip
    assert len(state.get_meta_info("x")["output_top_logprobs"][0]) == 2


def test_importing_the_language_loads_no_tensor_library():
    code = (
        "import sys, headstock; headstock.gen('x'); headstock.function(lambda s: None)\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_is_there():
    for name in hs.__all__:
        assert getattr(hs, name) is not None
    assert set(dir(hs)) == set(hs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'x'"):
        _ = hs.x


def test_the_default_back_end(served, headstock_server):
    hs.set_default_backend(headstock_server)
    assert echo.run(text="ab")["x"] == "abab"
    assert echo("ab")["x"] == "abab"
    assert hs.get_server_info()["version"] == hs.__version__
    hs.flush_cache()
    hs.set_default_backend(served.url)
    assert echo(text="ab")["x"] == "abab"


def test_the_trace_says_what_waited_and_what_was_shared(headstock_server):
    @hs.function
    def program(s):
        s += "ab" + hs.gen("x", **FOUR)
        forks = s.fork(2)
        forks += hs.gen("<y>", **FOUR)
        forks.join()

    state = program.run(backend=headstock_server)
    trace = json.loads(state.trace().to_json())
    assert trace["program"] == "program"
    rows = {(row["state"], row["name"]): row for row in trace["steps"] if row["kind"] == "gen"}
    assert set(rows) == {("main", "x"), ("main.0", "<y>"), ("main.1", "<y>")}
    row = rows["main", "x"]
    assert row["file"] == __file__
    assert row["cached_tokens"] == 3
    assert row["end_s"] >= row["first_s"] >= row["begin_s"] >= row["sent_s"] >= row["pushed_s"]
    assert rows["main.0", "<y>"]["begin_s"] >= row["end_s"]
    picture = state.trace().to_svg()
    assert picture.startswith("<svg")
    assert "&lt;y&gt;" in picture
    assert "<y>" not in picture


def test_a_state_may_be_handed_to_helpers(backend):
    def ask(s: ProgramState, text):
        s += text + hs.gen("x", **FOUR)
        return s["x"]

    @hs.function
    def program(s):
        return ask(s, "ab")

    assert program.run(backend=backend).ret_value == "abab"
