"""The process that renders chat templates: a template may loop for ever or fill all memory.

A program of its own, run by its path, which imports jinja2 and nothing of Headstock: it starts
quickly and holds nothing worth having. It reads frames from its standard input and answers each on
its standard output: four bytes of length, then JSON. The first frame is
``{"source", "cpu_s", "memory_bytes", "max_characters"}``, each later one the variables of a
rendering. When the processor time of one is used up, the kernel ends the process.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any, BinaryIO

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TemplateRefusal(jinja2.TemplateError):
    """The template itself refused the messages, by ``raise_exception``."""


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %} … {% endgeneration %}`` marks the assistant's words: here, just them."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the tag's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def make_environment() -> ImmutableSandboxedEnvironment:
    """Return jinja2's immutable sandbox with what ``transformers`` gives templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    # jinja2 does not annotate what these two hold.
    environment.filters["tojson"] = _to_json  # pyright: ignore[reportUnknownMemberType]
    environment.globals["raise_exception"] = _refuse  # pyright: ignore[reportUnknownMemberType]
    environment.globals["strftime_now"] = _strftime_now  # pyright: ignore[reportUnknownMemberType]
    return environment


def compile_template(source: str) -> tuple[jinja2.Template | None, dict[str, Any]]:
    """Return the template and what is answered; None: it does not compile."""
    try:
        return make_environment().from_string(source), {}
    except jinja2.TemplateSyntaxError as error:
        return None, {"error": "syntax", "message": error.message or "", "line": error.lineno}
    except (MemoryError, RecursionError, OverflowError) as error:
        return None, {"error": "exhausted", "message": type(error).__name__}


def render(template: jinja2.Template, variables: dict[str, Any], limit: int) -> dict[str, Any]:
    """Return what is answered to one set of variables."""
    try:
        text = template.render(**variables)
    except TemplateRefusal as error:
        return {"error": "refused", "message": error.message or ""}
    except (MemoryError, RecursionError, OverflowError) as error:
        return {"error": "exhausted", "message": type(error).__name__}
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        return {"error": "failed", "message": str(error)[:1000]}
    if len(text) > limit:
        return {"error": "exhausted", "message": f"{len(text)} characters"}
    return {"text": text}


def main() -> None:
    """Serve until standard input ends."""
    asked = read_frame(sys.stdin.buffer)
    if asked is None:
        return
    if sys.platform.startswith("linux"):  # elsewhere it counts what is only reserved
        resource.setrlimit(resource.RLIMIT_AS, (asked["memory_bytes"], asked["memory_bytes"]))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, asked["cpu_s"])
    template, answer = compile_template(asked["source"])
    signal.setitimer(signal.ITIMER_PROF, 0)
    write_frame(sys.stdout.buffer, answer)
    while template is not None and (variables := read_frame(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_PROF, asked["cpu_s"])
        answer = render(template, variables, asked["max_characters"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(sys.stdout.buffer, answer)


def read_frame(stream: BinaryIO) -> dict[str, Any] | None:
    """Return the next frame's value, or None at the end of the stream."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    size = int.from_bytes(head, "big")
    body = stream.read(size)
    return json.loads(body) if len(body) == size else None


def write_frame(stream: BinaryIO, value: dict[str, Any]) -> None:
    """Write ``value`` as one frame."""
    body = json.dumps(value).encode()
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without the HTML escapes of jinja2's own filter, which models never saw."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> str:
    raise TemplateRefusal(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


if __name__ == "__main__":
    main()
