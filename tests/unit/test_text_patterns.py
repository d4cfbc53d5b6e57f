"""Stop patterns cost what they may, and know where a match may begin."""

import subprocess
import sys
import time

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from headstock.errors import RequestError
from headstock.text import StopMatcher, StopPattern, compile_patterns

HOSTILE = [
    "(?:a{60000}){60000}",
    "(?:c{60000}){400}",
    "a{1000000}",
    "(?:a{1000}){1000}",
    "((((a{10}){10}){10}){10}){10}",
    r"\p{L}{900}",
    r"(?:\pL{30}){30}",
]
REFUSED = [
    "(", "a{2,1}", "a*", "", "a|", "(?:a?b?)", r"\b", "^", "(?=a)b", "(?<!a)b", r"(a)\1", r"\C",
    "[", "(?P<x>a", "\ud800", "(?i)", "^*", r"\Q\E",
]  # fmt: skip


@pytest.mark.parametrize("source", HOSTILE)
def test_a_pattern_that_would_take_all_memory_is_refused_at_once(source):
    begun = time.process_time()
    with pytest.raises(RequestError) as caught:
        StopPattern(source)
    assert time.process_time() - begun < 0.2
    assert caught.value.field == "stop_regex"


@pytest.mark.parametrize("source", REFUSED)
def test_a_pattern_that_is_wrong_or_matches_nothing_is_refused(source):
    with pytest.raises(RequestError) as caught:
        StopPattern(source)
    assert caught.value.field == "stop_regex"


def test_many_patterns_keep_little_memory():
    program = (
        "import resource\n"
        "from headstock.text import StopPattern\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "StopPattern('a' * 200)\n"
        "before = peak()\n"
        "for i in range(3000): StopPattern(f'(?:[a-z]{{9}}{i}){{20}}')\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert int(done.stdout) < 80_000  # KiB; kept by a bounded cache, not by each request


atoms = st.sampled_from(
    ["a", "b", "[ab]", "[^a]", ".", "(?i:A)", r"\x61", "[[:alpha:]]", "[]a]", r"\w"]
)
repeats = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{2,}", "{0,1}", "*?", "+?"])


def grown(inner):
    many = st.lists(st.tuples(inner, repeats), min_size=1, max_size=3)
    joined = many.map(lambda items: "".join(f"{text}{times}" for text, times in items))
    either = st.lists(joined, min_size=1, max_size=3).map("|".join)
    opened = st.sampled_from(["(", "(?:", "(?i:"])
    return st.tuples(opened, either).map(lambda pair: f"{pair[0]}{pair[1]})")


patterns = st.recursive(atoms, grown, max_leaves=6).map(lambda text: f"c{text}|{text}b")
texts = st.text(alphabet="abcA", max_size=12)


def mine(source):
    """Return ``source`` in the dialect of the module that is compared with."""
    return source.replace("[[:alpha:]]", "[a-zA-Z]").replace("[]a]", r"[\]a]")


@given(patterns, texts)
def test_a_match_may_begin_where_a_backtracking_engine_says_so(source, text):
    pattern = StopPattern(source)
    found = regex.search(mine(source), text)
    span = pattern.find(text, 0)
    # Where a match ends, engines differ on loops over nothing, such as (a*)*.
    assert (found and found.start()) == (span and span[0])
    if found is None:
        greedy = mine(source).replace("*?", "*").replace("+?", "+")  # its lazy partials are wrong
        partial = regex.search(greedy, text, partial=True)
        assert pattern.begun_at(text, 0) == (partial.start() if partial else len(text))


@given(patterns, texts, st.lists(st.integers(1, 4)))
def test_pieces_give_what_the_text_so_far_gives(source, text, sizes):
    pieces, begin = [], 0
    for size in sizes:
        pieces.append(text[begin : begin + size])
        begin += size
    pieces.append(text[begin:])
    matcher = StopMatcher([], compile_patterns([source]))
    out, so_far = "", ""
    for piece in pieces:
        so_far += piece
        more, matched = matcher.push(piece)
        out += more
        expected = StopPattern(source).find(so_far, 0)
        assert (matched is None) == (expected is None)
        if expected is not None:
            assert (out, matched) == (so_far[: expected[0]], source)
            return
    assert out + matcher.flush() == text


@pytest.mark.parametrize(
    ("source", "text", "at"),
    [
        (r"\Qa.b\E+x", "a.bb", 0),
        (r"\Qa.b\E+x", "acb", 3),
        ("(?i)END|stop", "xxSTO", 2),
        ("a(?i)b|c", "xxC", 2),
        (r"(?P<name>ab)+\d", "xabab", 1),
        (r"foo\B+d", "xfoo", 1),
        ("(?m)foo$\nbar", "xfoo\nb", 1),
        (r"[\]a\p{Greek}]{2}", "x]", 1),
        ("é{2}", "aé", 1),
        ("(?s)<.*>", "<\n\n", 0),
        ("ab{0}c", "xab", 3),
    ],
)
def test_syntax_of_every_kind_is_read(source, text, at):
    assert StopPattern(source).begun_at(text, 0) == at
