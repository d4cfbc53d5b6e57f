"""Write what benchmarks/results holds as a page of tables; the docs' site has it.

    python benchmarks/report.py > benchmarks.md

A file is JSON, or lines of it: facts (machine, date, command), and tables, which are lists of flat
records, or records by name. Samples of single runs are left in the file.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MAX_ROWS = 24
MAX_COLUMNS = 9
LEFT_OUT = frozenset({"samples", "details", "runs", "parts", "settings", "environment"})
SCALARS = (str, int, float, bool)
INTRODUCTION = f"""\
# Benchmarks

Each file of `benchmarks/results`, newest first, as it was written by the command that it names.
Compare figures of one file: machines, loads and commits differ between files. Long tables are cut
after {MAX_ROWS} rows; the file has the rest.
"""


@dataclass(frozen=True)
class Table:
    """Records with a common set of columns."""

    title: str
    rows: list[dict[str, Any]]


def render(folder: Path = RESULTS) -> str:
    """Return the page."""
    files = sorted(
        folder.glob("*.json*"), key=lambda path: (date_of(path), path.name), reverse=True
    )
    return "\n".join([INTRODUCTION, *(section(path) for path in files)])


def date_of(path: Path) -> str:
    """Return the day that a file's name tells."""
    found = re.search(r"\d{4}-\d{2}-\d{2}", path.name)
    return found[0] if found else ""


def section(path: Path) -> str:
    """Return one file's part of the page."""
    content = read(path)
    lines = [f"## {path.stem}", ""]
    for name, text in facts(content):
        lines.append(f"- {name}: {text}")
    lines.append("")
    for table in tables(content):
        lines += [f"**{table.title}**", "", *table_lines(table), ""]
    return "\n".join(lines)


def read(path: Path) -> Any:
    """Return what a file holds; lines of JSON become a list."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return json.loads(text)


def facts(content: Any) -> Iterator[tuple[str, str]]:
    """Yield what a file says of its run as a whole."""
    if not isinstance(content, dict):
        return
    for name, value in content.items():
        if isinstance(value, SCALARS):
            yield worded(name), cell(value)
        elif name == "machine" and isinstance(value, dict):
            yield "machine", ", ".join(f"{worded(k)} {cell(v)}" for k, v in value.items())
        elif isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            yield worded(name), "; ".join(cell(v) for v in value)


def tables(content: Any, title: str = "") -> Iterator[Table]:
    """Yield the tables of a file, with the keys that lead to them as titles."""
    if isinstance(content, list):
        rows = [flat(row) for row in content if isinstance(row, dict)]
        if any(rows):
            yield Table(title or "figures", [row for row in rows if row])
        return
    if not isinstance(content, dict):
        return
    records = {k: v for k, v in content.items() if isinstance(v, dict) and is_flat(v)}
    if title and len(records) > 1 and len(records) == len(content):
        yield Table(title, [{"": name, **flat(row)} for name, row in records.items()])
        return
    own = flat(content)
    if title and own and title != "machine":
        yield Table(title, [{"": worded(name), "value": value} for name, value in own.items()])
    for name, value in content.items():
        if name not in LEFT_OUT and name != "machine" and not is_strings(value):
            yield from tables(value, f"{title}, {worded(name)}" if title else worded(name))


def is_strings(value: Any) -> bool:
    """Tell whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def is_flat(record: dict[str, Any]) -> bool:
    """Tell whether a record has plain values only, but for what is left out."""
    return all(isinstance(v, SCALARS) for k, v in record.items() if k not in LEFT_OUT)


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """Return the plain values of a record."""
    return {k: v for k, v in record.items() if isinstance(v, SCALARS) and k not in LEFT_OUT}


def table_lines(table: Table) -> list[str]:
    """Return a table in Markdown: the commonest columns, and the first rows."""
    counts = Counter(name for row in table.rows for name in row)
    order = list(dict.fromkeys(name for row in table.rows for name in row))
    kept = {name for name, _ in counts.most_common(MAX_COLUMNS)}
    columns = [name for name in order if name in kept]
    lines = ["| " + " | ".join(worded(name) or " " for name in columns) + " |"]
    lines.append("|" + "---|" * len(columns))
    lines += [
        "| " + " | ".join(cell(row.get(name, "")) for name in columns) + " |"
        for row in table.rows[:MAX_ROWS]
    ]
    if len(table.rows) > MAX_ROWS:
        lines += ["", f"({MAX_ROWS} of {len(table.rows)} rows)"]
    return lines


def worded(name: str) -> str:
    """Return a key as words."""
    return name.replace("_", " ")


def cell(value: Any) -> str:
    """Return a value as it stands in a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


if __name__ == "__main__":
    sys.stdout.write(render())
