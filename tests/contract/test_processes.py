"""What each process of a server holds in memory: only its own half of the house."""

import subprocess
import sys

import pytest

APIS_HALF = ("fastapi", "tokenizers", "PIL", "headstock.text", "headstock.server.prompter")
ENGINES_HALF = ("torch", "headstock.runner", "headstock.engine", "headstock.scheduler")

WEB = ("fastapi", "uvicorn", "pydantic", "prometheus_client", "httpx", "rich")


@pytest.mark.parametrize(
    ("entry", "others"),
    [
        ("headstock.assemble.engine_main", APIS_HALF),
        ("headstock.assemble.rank_main", APIS_HALF),
        ("headstock.assemble.api_process", (*ENGINES_HALF, "PIL")),
        ("headstock.server.http.serve", ENGINES_HALF),
        ("headstock.assemble.offline", WEB),
    ],
)
def test_a_process_imports_its_own_half_only(entry: str, others: tuple[str, ...]) -> None:
    code = f"import sys, {entry}; print(*[name for name in {others} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
