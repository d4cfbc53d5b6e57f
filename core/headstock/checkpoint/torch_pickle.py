"""Reads the pickle in a file that torch wrote as a list of opcodes, and runs nothing of it.

Only opcodes that describe dicts of tensors are understood. Names in the pickle stay text: nothing
is imported, and nothing is called. What is read is bounded by the pickle's own size: keys are text
and no message repeats a value, since tuples that hold one another twice are small to write and
endless to hash or to print.

Source:
    Python's ``pickletools`` on opcodes.
"""

from __future__ import annotations

import pickletools  # nosec B403
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

REBUILD = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
DICT = "collections OrderedDict"


@dataclass(frozen=True, slots=True)
class Name:
    """A module's and a class's name; what they stand for is never looked up."""

    text: str


@dataclass(frozen=True, slots=True)
class Rebuild:
    """A tensor: the arguments of ``_rebuild_tensor_v2``, of any kinds."""

    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Storage:
    """Where the pickle says that a tensor's numbers lie, in values of any kinds."""

    place: tuple[Any, ...]


class UnknownPickleError(ValueError):
    """The pickle has something else than dicts of tensors."""


class _Mark:
    """Where a tuple's or a dict's items begin on the stack."""


def describe_pickle(data: bytes) -> Any:
    """Return what a pickle describes: dicts, tuples, numbers, text, and tensors not yet read.

    Raises:
        UnknownPickleError: It describes something else.
        ValueError, IndexError, KeyError, TypeError: It is damaged.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = stack[-1]  # pyright: ignore[reportArgumentType]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])  # pyright: ignore[reportArgumentType]
        elif name in _PLAIN:
            stack.append(argument)
        elif name in _ACTIONS:
            _ACTIONS[name](stack, argument)
        elif name != "PROTO":
            raise UnknownPickleError(f"opcode {name}")
    raise UnknownPickleError("no end")


def _pop_marked(stack: list[Any]) -> list[Any]:
    """Take what lies above the last mark, and the mark."""
    items: list[Any] = []
    while not isinstance(item := stack.pop(), _Mark):
        items.append(item)
    return items[::-1]


def _pop_tuple(size: int) -> Callable[[list[Any], Any], None]:
    def pop(stack: list[Any], argument: Any) -> None:
        items = tuple(stack.pop() for _ in range(size))
        stack.append(items[::-1])

    return pop


def _reduce(stack: list[Any], argument: Any) -> None:
    arguments, called = stack.pop(), stack.pop()
    if not isinstance(called, Name) or not isinstance(arguments, tuple):
        raise UnknownPickleError("a call of no name")
    given = cast("tuple[Any, ...]", arguments)
    if called.text == DICT:
        stack.append({})
    elif called.text == REBUILD:
        stack.append(Rebuild(given))
    elif called.text == PARAMETER and given and isinstance(given[0], Rebuild):
        stack.append(given[0])
    else:
        raise UnknownPickleError(f"a call of {called.text}")


def _set_items(stack: list[Any], argument: Any) -> None:
    items = _pop_marked(stack)
    _into(stack, items)


def _set_item(stack: list[Any], argument: Any) -> None:
    value, key = stack.pop(), stack.pop()
    _into(stack, [key, value])


def _into(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], dict):
        raise UnknownPickleError("items of no dict")
    found = cast("dict[str, Any]", stack[-1])
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str):
            raise UnknownPickleError("a key that is not a text")
        found[key] = value


_PLAIN = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"})
_ACTIONS: Mapping[str, Callable[[list[Any], Any], None]] = {
    "MARK": lambda stack, _: stack.append(_Mark()),
    "GLOBAL": lambda stack, name: stack.append(Name(name)),
    "BINPERSID": lambda stack, _: stack.append(Storage(tuple(stack.pop()))),
    "NEWTRUE": lambda stack, _: stack.append(True),
    "NEWFALSE": lambda stack, _: stack.append(False),
    "NONE": lambda stack, _: stack.append(None),
    "EMPTY_DICT": lambda stack, _: stack.append({}),
    "EMPTY_TUPLE": lambda stack, _: stack.append(()),
    "TUPLE": lambda stack, _: stack.append(tuple(_pop_marked(stack))),
    "TUPLE1": _pop_tuple(1),
    "TUPLE2": _pop_tuple(2),
    "TUPLE3": _pop_tuple(3),
    "REDUCE": _reduce,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "BUILD": lambda stack, _: stack.pop(),  # what a dict has beside its items: versions of modules
}
"""What each opcode does to the stack."""
