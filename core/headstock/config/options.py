"""The schema read as a list: what each setting is called, takes and defaults to, and its help."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec
from msgspec import inspect as types

from headstock.config.schema import EngineSettings, ServeSettings, Settings
from headstock.errors import ConfigError, did_you_mean

Kind = Literal["bool", "int", "float", "str", "choice", "list"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting.

    Attributes:
        section: Such as ``cache``.
        name: Such as ``page_size``; no other section has a setting of this name.
        type: What the value is converted to.
        default: Used when it is not set.
        kind: What a flag of it looks like.
        choices: With kind ``choice``.
        allowed: The values it takes, in words.
        has_flag: False for secrets, which a command line would show to every user of the machine.
        struct: The section's type.
    """

    section: str
    name: str
    type: Any
    default: Any
    kind: Kind
    choices: tuple[str, ...]
    allowed: str
    has_flag: bool
    struct: type[Settings]

    @property
    def help(self) -> str:
        """The string under the field. Reads the source, which most starts do not need."""
        return _docstrings(self.struct).get(self.name, "")

    @property
    def path(self) -> str:
        """Its key in the file, such as ``cache.page_size``."""
        return f"{self.section}.{self.name}"

    @property
    def flag(self) -> str:
        """Its flag, such as ``--page-size``."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """Its environment variable, such as ``HEADSTOCK_PAGE_SIZE``."""
        return f"HEADSTOCK_{self.name.upper()}"

    def convert(self, raw: Any, origin: str, *, is_text: bool) -> Any:
        """Return ``raw`` as this setting's type.

        Args:
            raw: What was given.
            origin: Where, for the message: a flag, a variable, or a file and key.
            is_text: Whether it may be a string that stands for a number or a boolean.

        Raises:
            ConfigError: It is not allowed.
        """
        try:
            return msgspec.convert(raw, self.type, strict=not is_text)
        except msgspec.ValidationError as error:
            shown = repr(raw) if self.has_flag else "not valid"
            guess = did_you_mean(str(raw), self.choices)
            default = "" if self.default is None else f", {self.default}"
            raise ConfigError(
                f"{origin} is {shown}; allowed: {self.allowed}.{guess}",
                remedy=f"Change it, or leave it out for the default{default}.",
            ) from error


def sections(settings: type[EngineSettings]) -> Iterator[tuple[str, type[Settings]]]:
    """Yield the sections of ``settings``: name and type."""
    for field in msgspec.structs.fields(settings):
        yield field.name, field.type


@functools.cache
def options(settings: type[EngineSettings] = ServeSettings) -> tuple[Option, ...]:
    """Return every setting of ``settings``, in the schema's order."""
    return tuple(_options(settings))


def _options(settings: type[EngineSettings]) -> Iterator[Option]:
    for section, struct in sections(settings):
        described = types.type_info(struct)
        assert isinstance(described, types.StructType), f"section {section} is not a struct"
        for field, hint in zip(described.fields, msgspec.structs.fields(struct), strict=True):
            kind, choices, allowed = _describe(field.type)
            default = hint.default_factory() if hint.default is msgspec.NODEFAULT else hint.default
            yield Option(
                section=section,
                name=field.name,
                type=hint.type,
                default=default,
                kind=kind,
                choices=choices,
                allowed=allowed,
                has_flag=_has_flag(field.type),
                struct=struct,
            )


def _has_flag(described: types.Type) -> bool:
    if not isinstance(described, types.Metadata):
        return True
    extra = cast("dict[str, object]", described.extra or {})  # pyright: ignore[reportUnknownMemberType]
    return extra.get("flag") is not False


def _describe(described: types.Type) -> tuple[Kind, tuple[str, ...], str]:
    """Return kind, choices, and the allowed values in words."""
    match described:
        case types.Metadata(type=inner):
            return _describe(inner)
        case types.UnionType(types=members):
            (inner,) = [m for m in members if not isinstance(m, types.NoneType)]
            return _describe(inner)
        case types.BoolType():
            return "bool", (), "true or false"
        case types.IntType():
            return "int", (), f"an integer{_bounds(described)}"
        case types.FloatType():
            return "float", (), f"a number{_bounds(described)}"
        case types.LiteralType(values=values):
            names = tuple(str(value) for value in values)
            return "choice", names, ", ".join(names)
        case types.ListType():
            return "list", (), "a list of strings"
        case types.StrType():
            return "str", (), "a string"
        case _:
            raise AssertionError(f"a setting cannot be of {described}")


def _bounds(described: types.IntType | types.FloatType) -> str:
    words = {"ge": "at least", "gt": "over", "le": "at most", "lt": "under"}
    limits = {name: getattr(described, name) for name in words}
    text = " and ".join(
        f"{words[n]} {limit:.12g}" for n, limit in limits.items() if limit is not None
    )
    return f", {text}" if text else ""


@functools.cache
def _docstrings(struct: type[Settings]) -> dict[str, str]:
    """Return the string that stands under each field of ``struct`` in its source."""
    (class_def,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(class_def, ast.ClassDef), f"{struct} is not a class"
    found: dict[str, str] = {}
    for field, after in zip(class_def.body, class_def.body[1:], strict=False):
        match field, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str() as text)),
            ):
                found[name] = " ".join(text.split())
            case _:
                pass
    return found
