"""A backend written from the page passes the kit; its tables name all hooks and ops."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headstock.ops import linear, load_all_ops
from headstock.ops.base import OF, Requires
from headstock.plugins import hooks
from headstock.plugins.device import Device, DeviceFacts
from headstock.plugins.probe import Status
from headstock.testing.suite.test_7_engine import CONFIGS
from headstock.testing.target import expose

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "writing-a-backend.md").read_text(encoding="utf-8")
FILE = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)```", re.DOTALL)
APPENDED = re.compile(r"<!-- append: (\S+) -->\n```python\n(.*?)```", re.DOTALL)
EXAMPLE = ROOT / "examples" / "backend_full"
SUITE = ROOT / "core" / "headstock" / "testing" / "suite"


def section(title: str) -> str:
    found = re.search(rf"^## \d+\. {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r}"
    return found[1]


def first_column(text: str) -> list[str]:
    return re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)


def own_ops() -> set[str]:
    """The names of Headstock's ops: what other tests declare has their package before it."""
    return {name for name in load_all_ops() if OF not in name}


def named(cells: list[str]) -> list[str]:
    return re.findall(r"`(\w+)[(`]", " ".join(cells))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the backend that the page walks through."""
    folder = tmp_path_factory.mktemp("from_the_page") / "package"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize(("path", "text"), FILE.findall(PAGE), ids=lambda each: each.split("\n")[0])
def test_a_file_of_the_page_is_the_examples(path: str, text: str) -> None:
    assert (EXAMPLE / path).read_text(encoding="utf-8") == text


def test_every_file_of_the_example_is_on_the_page() -> None:
    on_page = {path for path, _ in [*FILE.findall(PAGE), *APPENDED.findall(PAGE)]}
    package = EXAMPLE / "headstock_acme"
    assert {f"headstock_acme/{file.name}" for file in package.glob("*.py")} == on_page
    for path, text in APPENDED.findall(PAGE):
        assert text in (EXAMPLE / path).read_text(encoding="utf-8")


def run(written: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=written,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(written)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def certify(written: Path, *options: str) -> subprocess.CompletedProcess[str]:
    plugin = ("--headstock-backend=acme", "--headstock-plugin=headstock_acme")
    suite = ("pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "headstock.testing.suite")
    return run(written, *suite, *plugin, *options)


def test_the_backend_of_the_page_computes_its_op_as_the_reference_does(written: Path) -> None:
    done = certify(written, "-k", "rms_norm")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_backend_of_the_page_passes_the_kit(written: Path) -> None:
    done = certify(written)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_ranks_of_the_page_agree(written: Path) -> None:
    done = certify(written, "-k", "8_communication")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_model_whose_heads_divide_has_the_tokens_of_one_rank(
    written: Path, tmp_path: Path
) -> None:
    if not (written / "headstock_acme-0.dist-info").exists():
        paths = list(sys.path)
        expose("acme", "headstock_acme", written)
        sys.path[:] = paths
    config = CONFIGS["llama"] | {"num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "in.jsonl").write_text('{"input_ids": [5, 6, 7]}\n')
    flags = ("--input", tmp_path / "in.jsonl", "--temperature", "0", "--max-new-tokens", "8")
    words = ("headstock.cli", "generate", tmp_path, "--load-format", "dummy", *flags)
    words = (*words, "--skip-tokenizer-init", "--dtype", "float32", "--backend", "acme")
    answers = []
    for size in (1, 2):
        done = run(written, *words, "--tp-size", size)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout)["output_ids"])
    assert answers[0] == answers[1]


def test_the_files_of_the_page_have_no_lint(written: Path) -> None:
    options = ("--isolated", "--line-length", "100")
    done = run(written, "ruff", "check", "--select", "E,F,UP,B", *options, ".")
    assert done.returncode == 0, done.stdout
    done = run(written, "ruff", "format", "--check", *options, ".")
    assert done.returncode == 0, done.stdout


def test_every_hook_is_in_the_table_with_its_arguments() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section("The hooks"), re.MULTILINE)
    documented = {name: re.findall(r"`(\w+)`", arguments) for name, arguments in rows}
    specified = {
        name: list(inspect.signature(function).parameters)
        for name, function in vars(hooks).items()
        if name.startswith("headstock_")
    }
    assert documented == specified


def test_every_op_is_in_the_table() -> None:
    documented = named([c for c in first_column(section("One op")) if c.startswith("`")])
    assert set(documented) - set(Requires.__dataclass_fields__) == own_ops()


def test_every_requirement_is_in_the_table() -> None:
    documented = named(first_column(section("One op")))
    assert set(Requires.__dataclass_fields__) <= set(documented)


def test_every_member_of_a_device_is_in_the_table() -> None:
    members = {name for base in Device.__mro__ for name in vars(base) if not name.startswith("_")}
    facts = {name for name in DeviceFacts.__dataclass_fields__ if not name.startswith("_")}
    assert set(named(first_column(section("The device")))) == members | facts


def test_every_canonical_layout_is_in_the_table() -> None:
    names = [n for n in vars(linear) if n in ("DENSE", "MXFP4") or n.endswith("_GROUP")]
    layouts = {getattr(linear, name) for name in names}
    documented = re.findall(r"^\| `([\w-]+)` \|", section("Matrix products"), re.MULTILINE)
    assert set(documented) == layouts


def test_every_status_and_part_of_the_kit_is_in_its_table() -> None:
    assert named(first_column(section("The probe"))) == [status.name for status in Status]
    parts = {path.stem for path in SUITE.glob("test_*.py")}
    assert set(named(first_column(section("The kit")))) == parts


def test_the_api_version_is_the_current_one() -> None:
    assert f"HOOK_API = {hooks.HOOK_API}" in PAGE
