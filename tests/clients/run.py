"""Runs clients unchanged against a served SmolLM2, and writes what came of it.

Each client is installed in an environment of its own, as several exclude one another. Writes
``benchmarks/results/clients-DATE.json``, and from it ``docs/clients.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "clients.md"
TOKENIZER = "SmolLM2-135M-Instruct.Q4_1-tokenizer"
SETTINGS = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Client:
    """A package that asks the server.

    Attributes:
        name: Of its script, ``case_NAME.py``.
        package: Whose version is told; "": Python alone.
        more: What else is installed.
        unset: Environment variables that it cannot work with.
    """

    name: str
    package: str
    more: tuple[str, ...] = ()
    unset: tuple[str, ...] = field(default=())


CLIENTS = (
    Client("openai", "openai"),
    Client("anthropic", "anthropic"),
    Client("ollama", "ollama"),
    Client("langchain", "langchain-openai"),
    Client("llama_index", "llama-index-llms-openai-like"),
    Client("litellm", "litellm"),
    Client("instructor", "instructor"),
    Client("pydantic_ai", "pydantic-ai-slim", ("pydantic-ai-slim[openai]",)),
    Client("dspy", "dspy"),
    Client("cohere", "cohere"),
    Client("lm_eval", "lm_eval", ("lm_eval[api]", "transformers")),
    Client("guidellm", "guidellm"),
    Client("aiperf", "aiperf", unset=("HF_HUB_OFFLINE",)),
    Client("sglang_router", "sglang-router"),
    Client("bench_serving", ""),
)


def python_of(client: Client, folder: Path) -> Path:
    """Return the interpreter of the client's environment, which is made if need be."""
    if not client.package:
        return Path(sys.executable)
    home = folder / client.name
    python = home / "bin" / "python"
    if not (home / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        wanted = client.more or (client.package,)
        command = [str(python), "-m", "pip", "install", "--quiet", *wanted]
        subprocess.run(command, check=True)
        (home / "installed").touch()
    return python


def version_of(client: Client, python: Path) -> str:
    if not client.package:
        return ""
    code = f"import importlib.metadata as m; print(m.version({client.package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run_case(client: Client, python: Path, url: str, model: str, tokenizer: str, log: Path) -> dict:
    """Run a client's script and return its steps."""
    settings = {name: value for name, value in SETTINGS.items() if name not in client.unset}
    command = [str(python), str(HERE / f"case_{client.name}.py"), url, model, tokenizer]
    with log.open("w") as out:
        try:
            code = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **settings},
                timeout=1200, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = 124
    lines = log.read_text(errors="replace").splitlines()
    steps = [json.loads(line.removeprefix("STEP ")) for line in lines if line.startswith("STEP ")]
    if code or not steps:
        steps.append({"tried": "the script itself", "problem": f"it ended with {code}", "s": 0.0})
    return {"name": client.name, "package": client.package, "steps": steps}


@contextmanager
def served(log: Path):
    """Serve SmolLM2 on a free port, and give its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [
        sys.executable, "-m", "headstock.cli", "serve", "smollm2", "--port", str(port),
        "--chat-template", str(HERE / "tools_template.jinja"),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            wait_ready(url, server)
            yield url
        finally:
            server.terminate()
            server.wait(60)


def wait_ready(url: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url + "/ready", timeout=5):
                return
        except OSError:
            if server.poll() is not None:
                raise SystemExit("The server ended; its log has the reason.") from None
            time.sleep(0.2)
    raise SystemExit("The server was not ready in 300 s.")


def tokenizer_folder(url: str) -> str:
    """Return the folder of the served model's tokenizer."""
    with urllib.request.urlopen(url + "/model_info", timeout=5) as answer:
        return json.load(answer)["tokenizer_path"]


def page(found: dict) -> str:
    """Return docs/clients.md."""
    rows = []
    for client in found["clients"]:
        bad = [step for step in client["steps"] if step["problem"]]
        tried = "; ".join(step["tried"] for step in client["steps"])
        result = "all work" if not bad else "; ".join(f"{s['tried']}: {s['problem']}" for s in bad)
        name = client["package"] or f"{client['name']} (its HTTP calls)"
        run = client.get("date", found["date"])
        rows.append(f"| {name} | {client['version'] or '-'} | {run} | {tried} | {result} |")
    return "\n".join(
        [
            "# Clients",
            "",
            "Packages as they are published, each in an environment of its own, against a served"
            f" {found['model']} on a CPU.",
            f"Run with Headstock {found['headstock']} and Python {found['python']} on the day that"
            " each row has; `make clients` runs them again and writes this page. The",
            "scripts are `tests/clients/case_*.py`. CI runs openai, anthropic and ollama, too,"
            " against an engine that says what a test wants.",
            "",
            "| client | version | run | tried | result |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "`cohere` has a row because its error must be understood: reranking needs a model that"
            " embeds or classifies.",
            "SGLang's `bench_serving` needs all of SGLang to be imported; its documented HTTP calls"
            " are made one by one instead.",
            "",
        ]
    )


def newest() -> Path:
    """Return the newest results."""
    return max(RESULTS.glob("clients-*.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="clients to run; none: all")
    parser.add_argument("--url", help="a server that runs already, in place of one of our own")
    parser.add_argument("--page-only", action="store_true", help="write the page from the results")
    parser.add_argument("--environments", type=Path, help="where clients are installed, and kept")
    options = parser.parse_args()
    if not options.page_only:
        folder = options.environments or Path(tempfile.gettempdir()) / "headstock-clients"
        folder.mkdir(parents=True, exist_ok=True)
        if options.url:
            run_all(options.names, options.url, folder)
        else:
            with served(folder / "server.log") as url:
                run_all(options.names, url, folder)
    PAGE.write_text(page(json.loads(newest().read_text())), encoding="utf-8")


def run_all(names: list[str], url: str, folder: Path) -> None:
    """Run clients and write their results beside those of the others, which keep their day."""
    with urllib.request.urlopen(url + "/v1/models", timeout=5) as answer:
        model = json.load(answer)["data"][0]["id"]
    with urllib.request.urlopen(url + "/version", timeout=5) as answer:
        headstock = json.load(answer)["version"]
    date = datetime.now(UTC).date().isoformat()
    output = RESULTS / f"clients-{date}.json"
    last = json.loads(newest().read_text())
    rows = {row["name"]: {"date": last["date"], **row} for row in last["clients"]}
    tokenizer = tokenizer_folder(url)
    for client in CLIENTS:
        if names and client.name not in names:
            continue
        python = python_of(client, folder)
        log = folder / f"{client.name}.log"
        row = run_case(client, python, url, model, tokenizer, log)
        rows[client.name] = {**row, "version": version_of(client, python), "date": date}
        for step in row["steps"]:
            print(f"{client.name}: {step['tried']}: {step['problem'] or 'works'}", flush=True)
        found = {
            "date": date,
            "headstock": headstock,
            "python": platform.python_version(),
            "model": model,
            "clients": [rows[one.name] for one in CLIENTS if one.name in rows],
        }
        output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
