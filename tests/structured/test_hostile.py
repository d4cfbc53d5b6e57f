"""Grammars made to hurt: each is refused or served within the limits, by checks or by compiling."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from headstock.errors import RequestError
from headstock.requests.grammar import Grammar
from headstock.structured.checks import check_grammar
from headstock.structured.compiler import GrammarCompiler
from tests.structured.hostile import COMPILED, REFUSED_AT_ONCE
from tests.structured.vocabularies import compile_one, make_compiler


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = make_compiler(timeout_s=4.0)
    compile_one(compiler, "regex", "warm")
    yield compiler
    compiler.close()


@pytest.mark.parametrize("name", REFUSED_AT_ONCE)
def test_what_is_too_large_is_refused_by_looking_at_it(name: str) -> None:
    kind, text, code = REFUSED_AT_ONCE[name]
    with pytest.raises(RequestError) as caught:
        check_grammar(Grammar(kind, text, "the_field"))
    assert caught.value.code == code
    assert caught.value.field == "the_field"
    assert caught.value.problem.startswith("the_field ")
    assert len(caught.value.problem) < 300


@pytest.mark.parametrize("name", COMPILED)
def test_what_looks_harmless_is_compiled_or_refused_within_the_limits(
    compiler: GrammarCompiler, name: str
) -> None:
    kind, text = COMPILED[name]
    check_grammar(Grammar(kind, text, kind))
    begin_s = time.process_time()
    ticket = compile_one(compiler, kind, text)
    if ticket.error is not None:
        assert ticket.error.code in ("invalid_grammar", "grammar_too_complex")
        return
    assert ticket.compiled is not None
    matcher = ticket.compiled.matcher()
    for _ in range(4):
        (mask,) = compiler.masks([matcher])
        ids = [i for i in range(256) if mask[i >> 3] >> (i & 7) & 1]
        if matcher.error or not ids:
            break
        matcher.advance(ids[:1])
    assert time.process_time() - begin_s < 8.0


def test_ordinary_grammars_pass_the_checks() -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}}
    check_grammar(Grammar("json_schema", json.dumps(schema), "json_schema"))
    check_grammar(Grammar("json_object", "", "response_format"))
    check_grammar(Grammar("regex", r"\(\(\(\d{3,4}", "regex"))
    check_grammar(Grammar("choice", '["a", "b"]', "guided_choice"))
