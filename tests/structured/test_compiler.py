"""Grammars are compiled in a process of their own, under limits, and kept within a bound."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from headstock.requests.grammar import Grammar
from headstock.structured.compiler import GrammarCompiler
from headstock.structured.process import GIVE_WAY
from tests.structured.vocabularies import EOS, allowed, compile_one, make_compiler, wait_for

MISBEHAVING = "misbehaving:open_misbehaving"


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = make_compiler()
    yield compiler
    compiler.close()


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[GrammarCompiler]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for its process
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    compiler = make_compiler(timeout_s=1.0, memory_bytes=1 << 27, place=MISBEHAVING, num_workers=4)
    yield compiler
    compiler.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[GrammarCompiler]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    compiler = make_compiler(timeout_s=120.0, place=MISBEHAVING)
    yield compiler
    compiler.close()


@pytest.mark.parametrize(
    ("kind", "text", "right", "wrong"),
    [
        ("json_object", "", '{"a": [1, {"b": null}]}', "[1]"),
        ("json_schema", '{"type": "integer"}', "-12", '"1"'),
        ("json_schema", "true", '[1, "x"]', "nope"),
        ("regex", "[ab]{2,3}c", "abac", "abab"),
        ("ebnf", 'root ::= "x" digit+\ndigit ::= [0-9]', "x42", "x"),
        ("ebnf", 'start: "x" DIGIT+\nDIGIT: /[0-9]/', "x42", "y"),
        ("choice", '["yes", "no \\"way\\"", "né"]', 'no "way"', "maybe"),
        ("choice", '["yes", "né"]', "né", "ne"),
    ],
)
def test_every_kind_of_grammar_allows_what_it_describes(
    compiler: GrammarCompiler, kind: str, text: str, right: str, wrong: str
) -> None:
    ticket = compile_one(compiler, kind, text)
    assert ticket.error is None
    assert ticket.compiled is not None
    matcher = ticket.compiled.matcher()
    for token_id in right.encode():
        assert token_id in allowed(compiler.masks([matcher])[0])
        assert matcher.advance([token_id]) == 1
    assert matcher.can_end
    other = ticket.compiled.matcher()
    taken = other.advance(list(wrong.encode()))
    assert taken < len(wrong.encode()) or not other.can_end


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("regex", "(?=a)b", "look-ahead"),
        ("regex", "[a", "unclosed character class"),
        ("ebnf", "root ::= missing", "missing"),
        ("ebnf", "start: (", "Expected token"),
        ("json_schema", '{"type": "frob"}', "frob"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"not": {"type": "string"}}', "not"),
        ("structural_tag", '{"triggers": ["<f"]}', "structures"),
        ("structural_tag", '{"triggers": ["<f"], "structures": [1]}', "structures[0]"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_reason(
    compiler: GrammarCompiler, kind: str, text: str, reason: str
) -> None:
    ticket = compile_one(compiler, kind, text)
    assert ticket.error is not None
    assert ticket.error.code == "invalid_grammar"
    assert reason in ticket.error.problem
    assert "\n" not in ticket.error.problem


def test_tags_are_free_text_until_a_trigger_and_then_obey_their_schema(
    compiler: GrammarCompiler,
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    schema["additionalProperties"] = False
    tags = {
        "structures": [{"begin": "<f=a>", "schema": schema, "end": "</f>"}],
        "triggers": ["<f="],
    }
    ticket = compile_one(compiler, "structural_tag", json.dumps(tags))
    assert ticket.compiled is not None
    matcher = ticket.compiled.matcher()
    free = b"some text, 1 < 2 "
    assert matcher.advance(list(free)) == len(free)
    assert matcher.can_end
    begin = b'<f=a>{"n": 12}</f>'
    assert matcher.advance(list(begin)) == len(begin)
    assert matcher.can_end
    assert matcher.advance(list(b'<f=a>{"m"')) < len(b'<f=a>{"m"')


def test_a_trigger_that_is_a_special_token_is_not_triggered_by_its_text(
    compiler: GrammarCompiler,
) -> None:
    tags = {
        "structures": [{"begin": "<tool>", "schema": {"type": "integer"}, "end": ";"}],
        "triggers": ["<tool>"],
    }
    ticket = compile_one(compiler, "structural_tag", json.dumps(tags))
    assert ticket.compiled is not None
    text, token = ticket.compiled.matcher(), ticket.compiled.matcher()
    assert text.advance(list(b"<tool>no number")) == len(b"<tool>no number")
    assert token.advance([262, *b"12;"]) == 4
    again = ticket.compiled.matcher()
    assert again.advance([262, *b"no"]) == 1


def test_an_output_may_end_only_where_its_grammar_does(compiler: GrammarCompiler) -> None:
    ticket = compile_one(compiler, "regex", "a{2}b?")
    assert ticket.compiled is not None
    matcher = ticket.compiled.matcher()
    assert not matcher.can_end
    assert EOS not in allowed(compiler.masks([matcher])[0])
    matcher.advance(b"aa")
    assert matcher.can_end
    assert allowed(compiler.masks([matcher])[0]) - {EOS} == {ord("b")}


@pytest.mark.parametrize("num_ids", [287, 288, 289, 320])
def test_a_mask_has_a_bit_an_id_in_whole_words(num_ids: int) -> None:
    compiler = make_compiler(num_ids=num_ids)
    try:
        ticket = compile_one(compiler, "regex", "[a-c]+")
        assert ticket.compiled is not None
        for count in (1, 3):
            masks = compiler.masks([ticket.compiled.matcher() for _ in range(count)])
            assert [len(mask) for mask in masks] == [-(-num_ids // 32) * 4] * count
            assert allowed(masks[0]) == {*b"abc", 261}
    finally:
        compiler.close()


def test_masks_of_many_are_those_of_each(compiler: GrammarCompiler) -> None:
    ticket = compile_one(compiler, "json_object")
    assert ticket.compiled is not None
    matchers = [ticket.compiled.matcher() for _ in range(5)]
    for place, matcher in enumerate(matchers):
        matcher.advance(list(b'{"a": 1'[:place]))
    together = compiler.masks(matchers)
    assert together == [compiler.masks([matcher])[0] for matcher in matchers]
    assert {len(mask) for mask in together} == {-(-300 // 32) * 4}
    assert all(max(allowed(mask)) < 263 for mask in together), "ids that stand for nothing"


def test_drafts_are_taken_back(compiler: GrammarCompiler) -> None:
    ticket = compile_one(compiler, "regex", "[a-c]{4}")
    assert ticket.compiled is not None
    matcher = ticket.compiled.matcher()
    matcher.advance(b"a")
    before = compiler.masks([matcher])
    assert matcher.advance(b"bcz") == 2
    matcher.rollback(2)
    assert compiler.masks([matcher]) == before
    assert matcher.error == ""


def test_forced_ids_are_known(compiler: GrammarCompiler) -> None:
    ticket = compile_one(compiler, "regex", "abc[0-9]")
    assert ticket.compiled is not None
    forced = ticket.compiled.matcher().forced()
    assert forced
    assert ticket.compiled.matcher().advance(forced) == len(forced)


def test_equal_grammars_are_compiled_once(compiler: GrammarCompiler) -> None:
    first = compiler.start(Grammar("regex", "once[0-9]", "regex"))
    assert compiler.start(Grammar("regex", "once[0-9]", "guided_regex")) is first
    wait_for(first)
    assert compiler.start(Grammar("regex", "once[0-9]", "regex")) is first


def test_what_is_kept_is_bounded_by_bytes() -> None:
    compiler = make_compiler(cache_bytes=64 * 1024)
    try:
        tickets = [compile_one(compiler, "regex", f"x{number}") for number in range(12)]
        assert compiler.kept_bytes <= 64 * 1024
        assert compiler.start(tickets[0].grammar) is not tickets[0]
    finally:
        compiler.close()


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("spin", "grammar_too_complex", "takes more than 1 s"),
        ("sleep", "grammar_too_complex", "takes more than 1 s"),
        ("eat", "grammar_too_complex", "takes more than 128 MiB"),
        ("crash", "grammar_too_complex", "ended"),
        ("raise", "grammar_too_complex", "ended"),
        ("refuse", "invalid_grammar", "bad"),
    ],
)
def test_a_grammar_that_takes_too_much_is_refused_and_the_next_is_compiled(
    misbehaving: GrammarCompiler, text: str, code: str, words: str
) -> None:
    hit = compile_one(misbehaving, "regex", text)
    assert hit.error is not None
    assert hit.error.code == code
    assert words in hit.error.problem
    assert compile_one(misbehaving, "regex", "fine").error is None


def test_a_provider_that_fails_where_it_had_passed_fails_its_grammar_alone(
    misbehaving: GrammarCompiler,
) -> None:
    hit = compile_one(misbehaving, "regex", "raise in the engine")
    assert hit.error is not None
    assert hit.error.code == "engine_unavailable"
    assert "a defect of the provider" in hit.error.problem
    assert compile_one(misbehaving, "regex", "fine").error is None


def test_a_provider_that_cannot_be_opened_fails_each_grammar(
    misbehaving: GrammarCompiler,
) -> None:
    compiler = make_compiler(place="misbehaving:open_nothing")
    for _ in range(2):
        hit = compile_one(compiler, "regex", "fine")
        assert hit.error is not None
        assert "another version of the library" in hit.error.problem
    compiler.close()


def test_grammars_do_not_wait_for_one_that_takes_too_long(misbehaving: GrammarCompiler) -> None:
    wait_for(misbehaving.start(Grammar("regex", "warm", "regex")))
    slow = misbehaving.start(Grammar("regex", "sleep", "regex"))
    quick = compile_one(misbehaving, "regex", "fine")
    assert quick.error is None
    assert not slow.is_done


def test_a_grammar_that_takes_long_gives_way_to_others(patient: GrammarCompiler) -> None:
    wait_for(patient.start(Grammar("regex", "warm", "regex")))
    own = psutil.Process()
    usual = own.nice()

    def niceness() -> list[int]:
        return [c.nice() for c in own.children(recursive=True) if c.status() != "zombie"]

    patient.start(Grammar("regex", "sleep", "regex"))
    end_s = time.monotonic() + 60
    while max(niceness()) == usual:
        assert time.monotonic() < end_s, "it did not give way"
        time.sleep(0.01)
    assert max(niceness()) == min(19, usual + GIVE_WAY)
    assert usual in niceness()  # what starts the next ones stays as it was
    assert compile_one(patient, "regex", "fine").error is None


def test_a_process_that_is_lost_is_started_again(misbehaving: GrammarCompiler) -> None:
    lost = compile_one(misbehaving, "regex", "kill the parent")
    assert lost.error is not None
    assert lost.error.code == "engine_unavailable"
    assert compile_one(misbehaving, "regex", "fine").error is None


def test_no_process_is_left(misbehaving: GrammarCompiler) -> None:
    before = psutil.Process().children(recursive=True)
    compile_one(misbehaving, "regex", "fine")
    misbehaving.start(Grammar("regex", "sleep", "regex"))
    time.sleep(0.2)
    children = [c for c in psutil.Process().children(recursive=True) if c not in before]
    assert children
    misbehaving.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_nothing_starts_before_the_first_grammar() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    compiler = make_compiler()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    compiler.close()


def test_the_room_imports_no_torch_and_no_library_before_it_is_needed() -> None:
    code = (
        "import sys, headstock.structured.compiler, headstock.structured.checks,"
        " headstock.structured.process, headstock.engine;"
        " sys.exit(bool({'torch', 'llguidance', 'tokenizers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
