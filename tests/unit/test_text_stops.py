"""Stops are found whatever pieces the text comes in, and nothing past one gets out."""

import time

from hypothesis import given
from hypothesis import strategies as st

from headstock.text import StopMatcher, compile_patterns

letters = st.text(alphabet="ab", max_size=30)
stops = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4)


def feed(matcher, pieces):
    out = ""
    for piece in pieces:
        text, matched = matcher.push(piece)
        out += text
        if matched is not None:
            return out, matched
    return out + matcher.flush(), None


@given(letters, stops)
def test_a_character_at_a_time_ends_at_the_first_stop_that_is_complete(text, strings):
    got, matched = feed(StopMatcher(strings), text)
    ends = [
        (end, text[:end])
        for end in range(1, len(text) + 1)
        if any(text[:end].endswith(stop) for stop in strings)
    ]
    if not ends:
        assert (got, matched) == (text, None)
        return
    head = ends[0][1]
    complete = [stop for stop in strings if head.endswith(stop)]
    assert matched in complete
    assert got == head[: -max(map(len, complete))]


@given(letters, stops, st.lists(st.integers(1, 7)))
def test_nothing_that_belongs_to_a_stop_is_ever_published(text, strings, sizes):
    pieces, begin = [], 0
    for size in sizes:
        pieces.append(text[begin : begin + size])
        begin += size
    got, matched = feed(StopMatcher(strings), [*pieces, text[begin:]])
    assert text.startswith(got)
    if matched is None:
        assert got == text
    else:
        assert text.startswith(got + matched)


def test_the_stop_is_kept_when_asked():
    assert feed(StopMatcher(["END"], keep_match=True), ["ab", "cE", "ND", "x"]) == ("abcEND", "END")


def test_a_pattern_matches_across_pieces():
    got, matched = feed(StopMatcher([], compile_patterns([r"\d{3}"])), ["call 1", "2", "3 now"])
    assert (got, matched) == ("call ", r"\d{3}")


def test_text_before_a_possible_match_is_not_held():
    matcher = StopMatcher([], compile_patterns([r"\d{3}"]))
    assert matcher.push("call 12") == ("call ", None)
    assert matcher.push("a") == ("12a", None)


def test_a_pattern_that_may_always_go_on_holds_a_window_only():
    matcher = StopMatcher([], compile_patterns([r"a.*z"]))
    out = "".join(matcher.push("a" * 100)[0] for _ in range(30))
    assert len(out) >= 3000 - 1024 - 100


def test_a_pattern_that_would_backtrack_takes_linear_time():
    matcher = StopMatcher([], compile_patterns([r"(x+x+)+y"]))
    begun = time.monotonic()
    assert feed(matcher, ["x" * 20] * 40) == ("x" * 800, None)
    assert time.monotonic() - begun < 2


def test_assertions_see_what_was_published():
    matcher = StopMatcher([], compile_patterns([r"\bcat", "^b"]))
    assert feed(matcher, ["con", "cat", " b", " ca", "t"]) == ("concat b ", r"\bcat")
