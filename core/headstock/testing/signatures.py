"""Every signature that packages outside of Headstock may use, as lines of text.

``python -m headstock.testing.signatures FILE`` compares them with a file, and says what differs;
with ``--renew`` it writes the file, for a ``HOOK_API`` that is newer than the file's. What is in
the file is promised: it changes with the version of the hooks, or not at all.
"""

# ruff: noqa: T201 - what it prints is its result
from __future__ import annotations

import argparse
import difflib
import enum
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import headstock.graph
from headstock.ops import OP_MODULES, load_all_ops
from headstock.ops.base import Op
from headstock.plugins.hooks import HOOK_API

SEAM = (
    "headstock.errors",
    *(f"headstock.plugins.{name}" for name in ("hooks", "probe", "device", "host", "models")),
    *(f"headstock.plugins.{name}" for name in ("places", "drafters", "commands", "routes")),
    *(f"headstock.plugins.{name}" for name in ("tiers", "transports", "guard", "installed")),
    "headstock.checkpoint.formats",
    "headstock.plugins.quantization",
    "headstock.checkpoint.files",
    "headstock.text.parsers.registry",
    "headstock.text.parsers.parts",
    "headstock.speculative.provider",
    "headstock.structured.provider",
    *(f"headstock.ops.{name}" for name in ("base", "device", "communication", "page_format")),
    *(f"headstock.ops.{name}" for name in ("layouts", "canonical")),
    *(f"headstock.ops.{name}" for name in ("activation_kinds", *OP_MODULES)),
    *(f"headstock.ops.{name}_pages" for name in ("int8", "fp8", "narrow")),
    "headstock.ops.cases.base",
    "headstock.testing.layouts",
    "headstock.testing.oracle.case",
)
"""Modules whose public names plugins may import; those of ``headstock.graph`` come beside."""
KEPT = {"headstock.ops.attention": ("KVLayout", "PageFormat")}
"""Names that stay where they were when what they name moved, by module."""
SIMPLE = (str, int, float, bool, tuple, frozenset, type(None))


def signatures() -> list[str]:
    """Return all of them, sorted, one a line."""
    load_all_ops()
    found = pkgutil.iter_modules(headstock.graph.__path__, "headstock.graph.")
    modules = [*SEAM, *(each.name for each in found)]
    return sorted({line for module in modules for line in _of_module(module)})


def heading(api: tuple[int, int]) -> str:
    """Return the first line of a file of signatures."""
    return f"HOOK_API {api[0]}.{api[1]}"


def difference(file: Path) -> str | None:
    """Say how the signatures are not those of ``file``, or return None."""
    kept = file.read_text(encoding="utf-8").splitlines()
    now = [heading(HOOK_API), *signatures()]
    if kept == now:
        return None
    shown = list(difflib.unified_diff(kept, now, "kept", "now", n=0, lineterm=""))[2:]
    lines = "\n".join(line for line in shown if not line.startswith("@@"))
    advice = "raise HOOK_API in headstock/plugins/hooks.py, say in docs/from-1-to-2.md what changes"
    if kept[:1] != now[:1]:
        advice = f"HOOK_API is {now[0].split()[1]} now"
    return (
        f"Signatures that packages outside of Headstock use have changed:\n{lines}\n"
        f"-> {advice}, then: python -m headstock.testing.signatures {file.name} --renew"
    )


def _of_module(name: str) -> Iterator[str]:
    module = import_module(name)
    for kept in KEPT.get(name, ()):
        yield f"{name}.{kept} = {getattr(module, kept).__module__}.{getattr(module, kept).__name__}"
    for public, value in vars(module).items():
        if public.startswith("_") or inspect.ismodule(value):
            continue
        own = getattr(value, "__module__", name) == name
        if isinstance(value, Op):
            if value.reference.__module__ == name:
                yield from _of_op(f"{name}.{public}", value)
        elif inspect.isclass(value) and own:
            yield from _of_class(f"{name}.{public}", value)
        elif inspect.isfunction(value) and own:
            yield f"{name}.{public}{_signature(value)}"
        elif public.isupper() and isinstance(value, SIMPLE) and public in _assigned(module):
            yield f"{name}.{public} = {_text(value)}"


def _assigned(module: Any) -> set[str]:
    """Return the constants that a module assigns itself."""
    found = re.findall(r"^([A-Z][A-Z0-9_, ]*?)(?::[^=\n]*)? = ", inspect.getsource(module), re.M)
    return {name.strip() for names in found for name in names.split(",")}


def _of_op(where: str, op: Op[..., Any]) -> Iterator[str]:
    kind = "built op" if op.is_built else "op"
    yield f"{where}: {kind} {op.name}{_signature(op.reference)}"
    for feature in sorted(op.features):
        yield f"{where}: feature {feature}"


def _of_class(where: str, kind: type[Any]) -> Iterator[str]:
    bases = [base.__name__ for base in kind.__bases__ if base is not object]
    yield f"class {where}({', '.join(bases)})"
    if issubclass(kind, enum.Enum):
        yield from (f"{where}.{member.name} = {member.value!r}" for member in kind)
        return
    if is_dataclass(kind):
        yield from (f"{where}.{field.name}: {_field(field)}" for field in fields(kind))
    for name, value in vars(kind).items():
        if name == "__init__" and inspect.isfunction(value) and not is_dataclass(kind):
            yield f"{where}{_signature(value)}"
        if name.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"{where}.{name} -> {_annotation(getattr(value.fget, '__annotations__', {}))}"
        elif isinstance(value, (staticmethod, classmethod)):
            yield f"{where}.{name}{_signature(value.__func__)}"
        elif inspect.isfunction(value):
            yield f"{where}.{name}{_signature(value)}"


def _field(field: Field[Any]) -> str:
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    if field.default is not MISSING:
        return f"{kind} = {_text(field.default)}"
    return f"{kind} = …" if field.default_factory is not MISSING else f"{kind}"


def _signature(function: Any) -> str:
    parameters = inspect.signature(function).parameters.values()
    shown: list[str] = []
    star = False
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not star:
            shown.append("*")
        star = star or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        prefix = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        default = "" if each.default is each.empty else f" = {_text(each.default)}"
        kind = "" if each.annotation is each.empty else f": {each.annotation}"
        shown.append(f"{prefix}{each.name}{kind}{default}")
    return f"({', '.join(shown)}) -> {_annotation(getattr(function, '__annotations__', {}))}"


def _annotation(annotations: dict[str, Any]) -> str:
    return str(annotations.get("return", "?"))


def _text(value: Any) -> str:
    """Return a default as text that is the same in every process and version of Python."""
    if isinstance(value, (frozenset, set)):
        return f"{{{', '.join(sorted(map(repr, value)))}}}"  # type: ignore[reportUnknownArgumentType]
    if isinstance(value, SIMPLE):
        return repr(value)
    return f"<{type(value).__name__}>"


def main(argv: Iterable[str]) -> int:
    """Compare, or renew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="tests/contract/signatures.txt")
    parser.add_argument("--renew", action="store_true", help="write it, for a newer HOOK_API")
    parser.add_argument(
        "--unreleased", action="store_true", help="renew though HOOK_API is the file's: not out yet"
    )
    asked = parser.parse_args(list(argv))
    if not asked.renew:
        text = difference(asked.file)
        print(text or "The signatures are those of the file.")
        return 1 if text else 0
    kept = asked.file.read_text(encoding="utf-8").splitlines() if asked.file.exists() else []
    if kept[:1] == [heading(HOOK_API)] and not asked.unreleased and difference(asked.file):
        print(f"{asked.file} has {kept[0]} already. -> Raise HOOK_API first: that is the promise.")
        return 1
    asked.file.write_text("\n".join([heading(HOOK_API), *signatures(), ""]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
