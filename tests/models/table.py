"""Writes tables of the docs from what the tests try: `python -m tests.models.table`."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

from headstock.testing.oracle.case import ModelCase
from tests.models.cases import CASES
from tests.models.harness import REGISTRY
from tests.models.named import formats, table
from tests.models.test_fallback import FAMILIES, MORE
from tests.models.wide import CLAIMS, REPORT, YES, families
from tests.vision.wide import REPORT as SEEING

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (DOCS / "models.md", DOCS / "quantization.md")
BLOCK = "<!-- {0}: python -m tests.models.table -->\n\n{1}\n\n<!-- end -->"


def own_files() -> str:
    """Return the architectures with a file of ours, and what is compared of each."""
    cases: dict[type, list[ModelCase]] = {}
    for case in CASES:
        cases.setdefault(case.model, []).append(case)
    wide = json.loads(REPORT.read_text(encoding="utf-8"))
    seeing = json.loads(SEEING.read_text(encoding="utf-8"))
    outcomes = {case.model: wide[case.name] for case in families()}
    titles = ["architecture", "file", "ranks", *CLAIMS, "compared besides the plain configuration"]
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name in REGISTRY.names:
        model = REGISTRY.load(name)
        path = Path(inspect.getfile(model)).name
        if model not in cases:
            recorded = seeing.get(name, {})
            if "draw" not in model.yields:
                recorded = {"pooling": YES}
            cells = [_word(recorded.get(claim, "-")) for claim in ("ranks", *CLAIMS)]
            cells[0] = "2" if cells[0] == YES else cells[0]
            rows.append(f"| `{name}` | `{path}` | {' | '.join([*cells, _elsewhere(name)])} |")
            continue
        tried = [case.name.partition("-")[2] for case in cases[model] if "-" in case.name]
        tried += [variant for case in cases[model] for variant in case.variants]
        ranks = max(case.num_ranks for case in cases[model])
        cells = [str(ranks), *(_word(outcome) for outcome in outcomes[model].values())]
        rows.append(f"| `{name}` | `{path}` | {' | '.join(cells)} | {', '.join(tried) or '-'} |")
    return "\n".join(rows)


def _word(outcome: str) -> str:
    """Return an outcome without its reason."""
    return outcome.partition(":")[0]


def _elsewhere(name: str) -> str:
    """Return what is compared of architectures that do not take text alone to text."""
    if name.endswith("ForConditionalGeneration"):
        return "images and text: `tests/vision`"
    if "RewardModel" in name:
        return "rewards: `tests/models/test_rewards.py`"
    is_modern = name.startswith("ModernBert")
    return f"vectors and scores: `tests/models/test_{'sentence' if is_modern else 'pooled'}.py`"


def fallback() -> str:
    """Return the architectures that are compared through transformers' own class."""
    names = sorted(f"`{stem}ForCausalLM`" for stem in (*FAMILIES, *MORE))
    return ", ".join(names) + "."


def page(text: str) -> str:
    """Return the page with its tables as they are now."""
    tables = {
        "families": table(),
        "files": own_files(),
        "fallback": fallback(),
        "formats": formats(),
    }
    for mark, made in tables.items():
        whole = BLOCK.format(mark, made)
        text = re.sub(rf"<!-- {mark}: .*?<!-- end -->", lambda _, w=whole: w, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for file in PAGES:
        file.write_text(page(file.read_text(encoding="utf-8")), encoding="utf-8")
