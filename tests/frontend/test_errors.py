"""Errors of programs name the program's own line."""

import inspect

import pytest

import headstock as hs


def line_of(function, text):
    """The number of the line of `function` that has `text`."""
    lines, first = inspect.getsourcelines(function)
    return first + next(index for index, line in enumerate(lines) if text in line)


def failure(program, backend, **arguments):
    with pytest.raises(hs.ProgramError) as caught:
        program.run(backend=backend, **arguments)
    return caught.value


def test_a_refused_step_names_its_line(backend):
    @hs.function
    def program(s):
        s += "ab"
        s += hs.gen("x", temperature=-1.0)  # here

    error = failure(program, backend)
    assert error.line.file == __file__
    assert error.line.number == line_of(program.func, "# here")
    assert "temperature" in error.problem
    assert 's += hs.gen("x", temperature=-1.0)' in error.problem
    assert error.code == "invalid_type"


def test_a_step_of_a_fork_names_its_line(headstock_server):
    @hs.function
    def program(s):
        s += "ab"
        for fork in s.fork(2):
            fork += hs.gen("x", top_p=3.0)  # here

    assert failure(program, headstock_server).line.number == line_of(program.func, "# here")


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (lambda s: s.append(hs.gen("x", temprature=1)), "Did you mean 'temperature'"),
        (lambda s: s.append(hs.user("a") + "b"), "outside of a turn"),
        (lambda s: s.append("a" + hs.user("b")), "after plain text"),
        (lambda s: s.append(hs.user("a" + hs.gen("x"))), "generates in the user's turn"),
        (lambda s: s.append(hs.user_begin() + hs.system("x")), "inside of the user's"),
        (lambda s: s.append(hs.user_end()), "not begun"),
        (lambda s: s.append(hs.image(b"x")), "outside of a turn"),
        (lambda s: s.append(hs.image("/nowhere.png")), "cannot be read"),
        (lambda s: s.append(object()), "object cannot be added"),
        (lambda s: s.append(hs.select("x", [])), "no choices"),
        (lambda s: s.append(hs.select("x", ["a"], temperature=1)), "temperature is 1"),
        (lambda s: s.append(hs.select("x", ["a"], choices_method="best")), "choices_method"),
        (lambda s: s.append(hs.gen("x", regex="a", dtype=int)), "both given"),
        (lambda s: s.append(hs.gen("x", type=object())), "not a type that a result can have"),
        (lambda s: s.append(hs.separate_reasoning(hs.gen("x"), "gpt")), "model_type"),
        (lambda s: s.fork(0), "makes no state"),
        (lambda s: s["x"], "no variable 'x'"),
        (lambda s: s.fork(2).join("merge"), "mode is 'merge'"),
        (
            lambda s: s.append(
                hs.user("q") + hs.assistant_begin()
                + hs.when(hs.ref("x").is_set(), hs.assistant_end(), "a")
            ),
            "leaves a turn open",
        ),
    ],
)  # fmt: skip
def test_what_a_program_says_wrong(headstock_server, add, words):
    @hs.function
    def program(s):
        add(s)

    error = failure(program, headstock_server)
    assert words in error.problem
    assert error.line.file == __file__


def test_a_variable_that_is_not_there_suggests_one(headstock_server):
    @hs.function
    def program(s):
        s += "ab" + hs.gen("answer", max_tokens=1)
        s["anser"]

    assert "Did you mean 'answer'" in failure(program, headstock_server).problem


def test_no_back_end(monkeypatch):
    from headstock.frontend.backends import choose

    monkeypatch.setattr(choose._default, "backend", None)
    with pytest.raises(hs.ProgramError, match="No back end is set"):
        hs.function(lambda s: None).run()


def test_a_server_that_is_not_there():
    error = failure(hs.function(lambda s: s.append("a" + hs.gen("x"))), "http://127.0.0.1:9")
    assert error.code == "unreachable"
    assert "http://127.0.0.1:9 does not answer" in error.problem


def test_a_program_too_large_for_the_server(headstock_server):
    @hs.function
    def program(s):
        s += "a" + hs.gen("x", max_tokens=200_000)

    assert failure(program, headstock_server).code == "program_too_large"


def test_an_error_in_the_body_is_its_own(headstock_server):
    @hs.function
    def program(s):
        s += "a" + hs.gen("x")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        program.run(backend=headstock_server)


def test_a_function_without_a_state():
    with pytest.raises(hs.ProgramError, match="no parameter for the state"):

        @hs.function
        def program():
            pass
