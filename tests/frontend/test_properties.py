"""Any program: refused or run, never an error of ours; and reading in between changes nothing."""

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headstock as hs

FEW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = st.sampled_from(["main", "a", "b", "x", ""])
TEXTS = st.sampled_from(["", "ab", "é", "\ud7ff", "<think>", "x" * 300])
ROLES = st.sampled_from([None, "user", "assistant", "system", "tool"])
ODD = st.sampled_from([None, -1, 2**31, 2**70, 0.5, "x", [], {}, [[["x"]]], True])
PARAMS = st.dictionaries(
    st.sampled_from(["max_new_tokens", "n", "temperature", "stop", "stop_regex", "regex", "odd"]),
    st.one_of(st.integers(0, 4), ODD),
    max_size=3,
)
CONDITIONS = st.recursive(
    st.fixed_dictionaries({"var": NAMES}, optional={"equals": TEXTS, "is_set": st.booleans()}),
    lambda inner: st.fixed_dictionaries(
        {}, optional={name: st.lists(inner, max_size=2) for name in ("all_of", "any_of", "none_of")}
    ),
    max_leaves=3,
)


def dropped(step):
    return {name: value for name, value in step.items() if value is not None}


def steps(inner):
    common = {"state": st.one_of(st.just("main"), NAMES, st.none())}
    kinds = {
        "text": {"text": st.one_of(TEXTS, st.lists(st.builds(dict, var=NAMES), max_size=2)),
                 "role": ROLES},
        "gen": {"name": NAMES, "role": ROLES, "sampling_params": PARAMS},
        "select": {"name": NAMES, "choices": st.lists(TEXTS, max_size=3), "role": ROLES},
        "fork": {"into": st.lists(NAMES, max_size=2)},
        "join": {"states": st.lists(NAMES, max_size=2),
                 "mode": st.sampled_from(["gather", "concatenate", None])},
        "scope": {"name": NAMES, "is_end": st.booleans()},
        "media": {"url": TEXTS, "role": ROLES},
        "when": {"if": CONDITIONS, "then": st.lists(inner, max_size=2)},
    }  # fmt: skip
    return st.one_of(
        st.fixed_dictionaries({"type": st.just(kind), **common, **fields}).map(dropped)
        for kind, fields in kinds.items()
    )


STEPS = st.recursive(st.just({"type": "text", "text": "ab"}), steps, max_leaves=4)


@FEW
@given(st.lists(STEPS, max_size=6))
def test_any_program_is_run_or_refused(served, program):
    answer = httpx.post(served.url + "/v1/programs", json={"steps": program}, timeout=20)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        error = answer.json()["error"]
        assert error["message"]
        assert error["code"] != "internal_error"
    assert served.call(lambda: served.frontdoor.num_live) == 0


ACTIONS = st.lists(
    st.sampled_from(["text", "gen", "select", "ref", "when", "scope", "fork", "read"]),
    min_size=1,
    max_size=8,
)


def play(actions, *, reads, backend):
    @hs.function
    def program(s):
        s += "ab"
        seen = []
        for number, action in enumerate(actions):
            name = f"v{number}"
            gen = hs.gen(name, max_tokens=3, ignore_eos=True)
            if action == "text":
                s += f"[{number}]"
            elif action == "gen":
                s += gen
                seen.append(name)
            elif action == "select":
                s += hs.select(name, ["zz", "aaa"])
                seen.append(name)
            elif action == "ref" and seen:
                s += "<" + hs.ref(seen[-1]) + ">"
            elif action == "when" and seen:
                s += hs.when(hs.ref(seen[-1]).contains("a"), gen, "no")
            elif action == "scope":
                with s.var_scope(name):
                    s += "(" + hs.gen(f"{name}_", max_tokens=2, ignore_eos=True) + ")"
                seen.append(name)
            elif action == "fork":
                forks = s.fork(2)
                for index, fork in enumerate(forks):
                    fork += f"{index}" + gen
                    if reads and index:
                        assert fork[name]
                forks.join("concate_and_append")
            elif action == "read" and reads and seen:
                assert s[seen[-1]] is not None

    state = program.run(backend=backend)
    names = [name for n, _ in enumerate(actions) for name in (f"v{n}", f"v{n}_") if name in state]
    return state.text(), {name: state[name] for name in names}


@FEW
@given(ACTIONS)
def test_reading_in_between_changes_nothing(headstock_server, actions):
    whole = play(actions, reads=False, backend=headstock_server)
    assert play(actions, reads=True, backend=headstock_server) == whole


@settings(FEW, max_examples=20)
@given(ACTIONS)
def test_the_interpreter_here_means_what_the_server_means(
    headstock_server, openai_endpoint, actions
):
    whole = play(actions, reads=False, backend=headstock_server)
    assert play(actions, reads=True, backend=openai_endpoint) == whole


@pytest.mark.parametrize("actions", [["fork", "fork", "gen"], ["gen", "when", "fork", "scope"]])
def test_the_property_is_of_programs_that_do_something(headstock_server, actions):
    text, values = play(actions, reads=False, backend=headstock_server)
    assert len(text) > 10
    assert values
