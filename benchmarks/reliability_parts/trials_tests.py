"""R25: what the tests run, and what they notice, from the newest runs that measured it."""

from __future__ import annotations

import json

from reliability_parts import page
from reliability_parts.outcome import Outcome


def coverage_and_mutants(model: str) -> Outcome:
    """R25: lines and branches of core in the quick tests, and mutants that they notice."""
    covered_path = max(page.RESULTS.glob("covered-*.json"))
    mutants_path = max(page.RESULTS.glob("mutants-*.json"))
    covered = json.loads(covered_path.read_text(encoding="utf-8"))
    rows = json.loads(mutants_path.read_text(encoding="utf-8"))
    noticed, count = (sum(row[key] for row in rows.values()) for key in ("noticed", "mutants"))
    each = ", ".join(f"{name} {row['noticed']}/{row['mutants']}" for name, row in rows.items())
    lines, branches = covered["covered_lines"], covered["covered_branches"]
    return Outcome(
        f"{lines} % of lines and {branches} % of branches of core in"
        f" {', '.join(covered['folders'])}; {noticed} of {count} mutants noticed"
        f" ({noticed / max(1, count):.0%}): {each}",
        lines >= 90 and branches >= 85 and noticed >= 0.8 * count,
        {"files": [covered_path.name, mutants_path.name]},
    )
