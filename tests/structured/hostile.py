"""Grammars made to hurt."""

from __future__ import annotations

import json

from headstock.structured.checks import MAX_BYTES, MAX_ENUM


def nested(depth: int) -> str:
    return '{"properties":{"a":' * depth + "{}" + "}}" * depth


def tree(depth: int) -> dict:
    if depth == 0:
        return {"type": "string"}
    return {"oneOf": [{"properties": {f"k{i}": tree(depth - 1)}} for i in range(3)]}


BRANCHES = {
    "allOf": [
        {"anyOf": [{"properties": {f"a{i}_{j}": {"type": "string"}}} for j in range(12)]}
        for i in range(12)
    ]
}
RULES = "\n".join(
    ["root ::= r0", *(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(300)), 'r300 ::= "a"']
)
REFUSED_AT_ONCE = {
    "too long": ("regex", "a" * (MAX_BYTES + 1), "grammar_too_complex"),
    "too long in bytes": ("regex", "é" * (MAX_BYTES // 2 + 1), "grammar_too_complex"),
    "deep schema": ("json_schema", nested(100), "grammar_too_complex"),
    "very deep schema": ("json_schema", "[" * 30_000, "invalid_grammar"),
    "deep pattern": ("regex", "(" * 1000 + "a" + ")" * 1000, "grammar_too_complex"),
    "deep pattern in a schema": (
        "json_schema",
        json.dumps({"type": "string", "pattern": "(" * 100 + "a" + ")" * 100}),
        "grammar_too_complex",
    ),
    "large enum": (
        "json_schema",
        json.dumps({"enum": list(range(MAX_ENUM + 1))}),
        "grammar_too_complex",
    ),
    "many values": ("json_schema", json.dumps({"x": [0] * 25_000}), "grammar_too_complex"),
    "large repeat": ("regex", "a{1,99999999}", "grammar_too_complex"),
    "endless repeat": ("regex", "a{" + "9" * 5000 + "}", "grammar_too_complex"),
    "large count": ("json_schema", '{"minItems": 100000000000}', "grammar_too_complex"),
    "many branches": ("regex", "|" * 30_000, "grammar_too_complex"),
    "many choices": ("choice", json.dumps(["x"] * (MAX_ENUM + 1)), "grammar_too_complex"),
    "empty choice": ("choice", '[""]', "invalid_grammar"),
    "no choices": ("choice", "[]", "invalid_grammar"),
    "choices of another type": ("choice", "[1]", "invalid_grammar"),
    "no JSON": ("json_schema", "{", "invalid_grammar"),
    "no schema": ("json_schema", "[1]", "invalid_grammar"),
    "schema that allows nothing": ("json_schema", "false", "invalid_grammar"),
    "empty": ("ebnf", " \n", "invalid_grammar"),
    "lone surrogate": ("json_schema", '{"a": "\ud800"}', "invalid_grammar"),
}
COMPILED = {
    "nested repeats": ("regex", "((a{1,100}){1,100}){1,100}"),
    "deeply nested repeats": ("regex", "(((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000})"),
    "exponential automaton": ("regex", "(a|b)*a(a|b){22}"),
    "nested stars": ("regex", "((((a*)*)*)*)*b"),
    "long repeat": ("regex", "[a-z]{1,50000}"),
    "unicode classes": ("regex", r"(\w\W\p{L}\P{L}){1,500}"),
    "many alternatives": ("regex", "|".join(f"x{i}y" for i in range(3000))),
    "refers to itself": ("json_schema", '{"$ref": "#"}'),
    "refers to others in circles": (
        "json_schema",
        '{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}',
    ),
    "refers to the network": ("json_schema", '{"$ref": "http://127.0.0.1:1/x.json"}'),
    "many items": ("json_schema", '{"type":"array","minItems":100000,"maxItems":1000000}'),
    "many branches": ("json_schema", json.dumps(BRANCHES)),
    "tree of one-ofs": ("json_schema", json.dumps(tree(6))),
    "large enum": ("json_schema", json.dumps({"enum": [f"value {i}" for i in range(2500)]})),
    "long text": ("json_schema", '{"type":"string","minLength":900000,"maxLength":1000000}'),
    "odd multiple": ("json_schema", '{"type":"number","multipleOf":0.0000001,"minimum":3}'),
    "patterned properties": ("json_schema", '{"patternProperties":{"^(a+)+$":{},"^a*$":{}}}'),
    "left recursion": ("ebnf", 'root ::= root "a" | root root | "b"'),
    "ambiguous": ("ebnf", "root ::= s\ns ::= s s s | s s | [a-z] |"),
    "rule without end": ("ebnf", 'root ::= "a" root'),
    "many rules": ("ebnf", RULES),
    "no bytes": ("regex", "[^\\x00-\\x{10FFFF}]"),
}  # fmt: skip
