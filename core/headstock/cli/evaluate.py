"""Evaluate a model with lm-eval's tasks, on a server or on an engine in this process.

TASK is the name of a task that lm-eval has, or of one in --tasks-folder: a YAML file in lm-eval's
form, with its data beside it (`dataset_path: json`, `dataset_kwargs: {data_files: …}`). Without
--url the engine runs in this process; --model and its settings are as of `headstock serve`.

Examples:
  headstock eval capitals --tasks-folder ./tasks --model smollm2
  headstock eval capitals --tasks-folder ./tasks --url http://10.0.0.5:30000 --num-fewshot 2
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from headstock.cli.chat import engine_settings
from headstock.cli.eval_scorer import Ask, Scorer, to_params
from headstock.cli.offline import open_engine
from headstock.cli.remote import RemoteServer, own_key
from headstock.cli.table import format_table
from headstock.config import EngineSettings, Loaded, ServeSettings, Source, add_flags, read_settings
from headstock.errors import ConfigError

MISSING = "pip install 'headstock[eval]'."
ANSWER_S = 3600.0
"""How long one answer may take: many are asked for at once. Seconds."""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock eval``."""
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="names of tasks")
    parser.add_argument("--tasks-folder", metavar="DIR", help="with tasks of your own, in YAML")
    parser.add_argument("--url", metavar="URL", help="server to ask, instead of an own engine")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples before a question")
    parser.add_argument("--limit", type=int, metavar="N", help="questions of each task, at most")
    parser.add_argument("--chat", action="store_true", help="ask through the chat template")
    parser.add_argument("--output-file", metavar="FILE", help="JSON with all of lm-eval's results")
    add_flags(parser, EngineSettings, has_model_argument=False)
    parser.usage = f"{parser.prog} TASK [TASK ...] [options]"


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print a table."""
    loaded = read_settings(arguments, ServeSettings)
    flags = [origin.name for origin in loaded.origins.values() if origin.source is Source.FLAG]
    if arguments.url is not None and flags:
        raise ConfigError(
            f"--url names a server, and {flags[0]} sets up an engine in this process.",
            remedy=f"Drop --url or {flags[0]}.",
        )
    for name in ("num_fewshot", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < (1 if name == "limit" else 0):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is {value}.", remedy="Give more, or leave it out.")
    lm_eval = _lm_eval()
    with _model(arguments.url, loaded) as ask:
        info = ask("/model_info", None)
        length = int(info["max_model_len"])
        scorer = Scorer(ask, length, bos_id=_bos(ask), adds_special=not arguments.chat)
        found = _evaluate(lm_eval, scorer, arguments)
    print(_table(found["results"]))
    if arguments.output_file is not None:
        _write(arguments.output_file, found)
    return 0


def _lm_eval() -> Any:
    """Return lm-eval.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        lm_eval = importlib.import_module("lm_eval")
        importlib.import_module("lm_eval.tasks")
    except ImportError as error:
        raise ConfigError(
            f"`headstock eval` needs lm-eval, and {error.name} is not installed.", remedy=MISSING
        ) from error
    return lm_eval


@contextlib.contextmanager
def _model(url: str | None, loaded: Loaded[ServeSettings]) -> Iterator[Ask]:
    """Yield the way to the model: a server's, or an engine's of this process."""
    if url is not None:
        with contextlib.closing(RemoteServer(url, own_key(loaded.settings.server))) as server:
            client = httpx.Client(headers=server.headers, timeout=ANSWER_S, trust_env=False)
            with client:
                yield lambda path, body: _checked(path, _send(client, server.url + path, body))
        return
    with open_engine(engine_settings(loaded)) as engine:

        def ask(path: str, body: Any) -> Any:
            if path == "/model_info":
                return {"max_model_len": engine.card.max_length}
            return _checked(path, asyncio.run(engine.async_request(path, body)))

        yield ask


def _send(client: httpx.Client, url: str, body: Any) -> tuple[int, Any]:
    try:
        answer = client.get(url) if body is None else client.post(url, json=body)
        return answer.status_code, answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ConfigError(
            f"{url} does not answer as a server would: {error}.", remedy="Check --url."
        ) from error


def _checked(path: str, answer: tuple[int, Any]) -> Any:
    status, content = answer
    if status != 200:
        message = content.get("error", {}).get("message", content)
        raise ConfigError(
            f"{path} answers with {status}: {message}", remedy="See docs/http-api.md."
        )
    return content


def _bos(ask: Ask) -> int | None:
    """Return the id that stands before a text that nothing stands before; None: there is none."""
    found = ask("/tokenize", {"prompt": "", "add_special_tokens": True})["tokens"]
    return found[0] if found else None


def _evaluate(lm_eval: Any, scorer: Scorer, arguments: argparse.Namespace) -> dict[str, Any]:
    manager = lm_eval.tasks.TaskManager(include_path=arguments.tasks_folder)
    unknown = [name for name in arguments.tasks if not manager.match_tasks([name])]
    if unknown:
        raise ConfigError(
            f"There is no task {unknown[0]!r}.",
            remedy="Name one of lm-eval's, or give --tasks-folder with its YAML file.",
        )
    found = lm_eval.simple_evaluate(
        model=_adapter(scorer),
        tasks=arguments.tasks,
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        apply_chat_template=arguments.chat,
        task_manager=manager,
        log_samples=False,
    )
    assert found is not None, "lm-eval has results on its first rank only"
    return found


def _adapter(scorer: Scorer) -> Any:
    """Return what lm-eval calls a model."""
    base: Any = importlib.import_module("lm_eval.api.model").LM

    class Adapter(base):
        """Hands lm-eval's questions to a scorer."""

        tokenizer_name = "headstock"

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            found = scorer.likelihoods([request.args for request in requests])
            return [(one.logprob, one.is_greedy) for one in found]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            return scorer.whole([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            params = [to_params(request.args[1]) for request in requests]
            return scorer.go_on([request.args[0] for request in requests], params)

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            return scorer.render(chat_history, is_open=add_generation_prompt)

        def chat_template(self, chat_template: bool | str = False) -> str:
            return "the server's"

    return Adapter()


def _table(results: dict[str, dict[str, Any]]) -> str:
    """Return a table of metrics, each with its standard error."""
    rows: list[tuple[str, ...]] = []
    for task, metrics in results.items():
        for name, value in metrics.items():
            metric, _, part = name.partition(",")
            if not part or metric.endswith("_stderr") or not isinstance(value, float | int):
                continue
            error = metrics.get(f"{metric}_stderr,{part}")
            shown = f"± {error:.4f}" if isinstance(error, float) else ""
            name = metric if part == "none" else f"{metric} ({part})"
            rows.append((task, name, f"{value:.4f}", shown))
    return format_table(("task", "metric", "value", ""), rows)


def _write(path: str, found: dict[str, Any]) -> None:
    try:
        Path(path).write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The results cannot be written to {path}: {error.strerror or error}.",
            remedy="Check --output-file.",
        ) from error
    print(f"all results: {path}", file=sys.stderr)
