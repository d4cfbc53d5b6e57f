"""The files of docker/: linted where linters are installed, and checked against what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headstock.config.options import options
from headstock.observe.metrics import Metrics
from headstock.scheduler.counters import Counters
from headstock.wire.messages import State

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
SCRIPTS = sorted(
    path for path in DOCKER.rglob("*") if path.is_file() and path.read_bytes()[:2] == b"#!"
)
DASHBOARD = DOCKER / "observe/grafana/headstock.json"
yaml = pytest.importorskip("yaml", reason="pip install headstock[dev]")


def linter(name: str) -> str:
    """Return a linter that a Python package has brought."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    base = shutil.which(name, path=str(Path(pytest.__file__).parents[4] / "bin"))
    if (found or base) is None:
        pytest.skip(f"there is no {name} here: pip install headstock[dev]")
    return str(found or base)


def lint(*words: object) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_the_dockerfile_is_clean() -> None:
    assert not lint(
        linter("hadolint"), "--config", DOCKER / ".hadolint.yaml", DOCKER / "Dockerfile"
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script: Path) -> None:
    lint(linter("shellcheck"), "--severity=style", script)


def test_the_scripts_are_those_that_there_are() -> None:
    assert [path.name for path in SCRIPTS] == ["entry", "build-ec2.sh", "serve"]


def test_there_is_a_base_for_each_backend() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bases = set(re.findall(r"AS base-(\w+)", DOCKERFILE))
    assert bases == set(project["entry-points"]["headstock.backends"])
    extras = project["optional-dependencies"]
    assert bases <= set(extras)
    for backend in bases:
        (torch,) = re.findall(rf'AS base-{backend}\n(?:.*\n)*?ENV TORCH="torch(.*)"', DOCKERFILE)[
            :1
        ]
        pinned = [row for row in extras[backend] if re.match(r"torch[=<>]", row)]
        for row in pinned:
            assert agrees(torch.removeprefix("=="), row.split(";")[0]), (backend, torch, row)


def agrees(version: str, requirement: str) -> bool:
    from packaging.requirements import Requirement

    return Requirement(requirement).specifier.contains(version)


def test_what_is_copied_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?:--\S+ )*(docker/\S+)", DOCKERFILE, re.MULTILINE)
    assert copied == ["docker/entry", "docker/sagemaker/serve"]
    assert all(f"!{path}" in ignored for path in copied)
    assert all((ROOT / path).exists() for path in copied)


def test_variables_of_the_images_are_settings() -> None:
    known = {option.variable for option in options()} | {"HEADSTOCK_CACHE_DIR"}
    named = set(re.findall(r"\b(HEADSTOCK_[A-Z_]+)=", DOCKERFILE))
    assert named
    assert named <= known


MANIFESTS = [d for d in documents(DOCKER / "kubernetes/headstock.yaml") if d]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_manifests_obey_the_schemas_of_kubernetes(manifest: dict[str, Any]) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="pip install headstock[dev]")
    schemas.validate(manifest, schemas.latest_version(), strict=True)


def test_the_deployment_uses_flags_and_routes_that_exist() -> None:
    (deployment,) = (m for m in MANIFESTS if m["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    flags = {option.flag for option in options()}
    assert {word for word in container["args"] if word.startswith("--")} <= flags
    (port,) = container["ports"]
    (default,) = (option.default for option in options() if option.name == "port")
    assert port["containerPort"] == default
    page = (ROOT / "docs/http-api.md").read_text(encoding="utf-8")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        path = container[probe]["httpGet"]["path"]
        assert re.search(rf"^\|.*`GET {path}`.*\| no \|$", page, re.MULTILINE), path
    drain_s = float(container["args"][container["args"].index("--drain-timeout-s") + 1])
    assert pod["terminationGracePeriodSeconds"] > drain_s
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_monitor_scrapes_the_service() -> None:
    (monitor,) = documents(DOCKER / "kubernetes/monitoring.yaml")
    (service,) = (m for m in MANIFESTS if m["kind"] == "Service")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    page = (ROOT / "docs/http-api.md").read_text(encoding="utf-8")
    assert f"`GET {endpoint['path']}`" in page


def test_compose_mounts_what_there_is() -> None:
    (compose,) = documents(DOCKER / "compose.yaml")
    assert {"headstock", "prometheus", "grafana"} == set(compose["services"])
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).is_file(), source
            else:
                assert source in compose["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    build = compose["services"]["headstock"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
    (scrape,) = documents(DOCKER / "observe/prometheus.yaml")[0]["scrape_configs"]
    assert scrape["static_configs"][0]["targets"] == ["headstock:30000"]


def test_the_dashboard_asks_the_source_that_is_provisioned() -> None:
    (sources,) = documents(DOCKER / "observe/grafana/datasource.yaml")
    (source,) = sources["datasources"]
    variables = {v["name"]: v for v in json.loads(DASHBOARD.read_text())["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == source["uid"]


# Queries against the metrics that exist


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """The labels of every sample that a server exports, by the sample's name."""
    totals = {**asdict(Counters()), "evicted_pages": 0}
    state = State(
        steps=0, running=0, waiting=0, free_pages=1, cached_pages=0, total_pages=1, totals=totals
    )
    metrics = Metrics("toy", lambda: state)
    metrics.refused("queue_full")
    metrics.ended("stop", 2, 1.0, 1.0)
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def queries() -> Iterator[tuple[str, str]]:
    """Yield where a query stands, and the query."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")
    (rules,) = documents(DOCKER / "observe/alerts.yaml")
    for rule in rules["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]


QUERIES = list(queries())


def selectors(expression: Any) -> list[Any]:
    """Return every vector selector of a parsed query."""
    import promql_parser

    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(expression, visit)
    return found


@pytest.mark.parametrize(("where", "query"), QUERIES)
def test_queries_name_metrics_and_labels_that_exist(
    where: str, query: str, exported: dict[str, set[str]]
) -> None:
    parser = pytest.importorskip("promql_parser", reason="pip install headstock[dev]")
    found = selectors(parser.parse(query))
    assert found, where
    for selector in found:
        if selector.name == "up":  # Prometheus' own
            continue
        assert selector.name in exported, f"{where}: there is no {selector.name}"
        labels = {matcher.name for matcher in selector.matchers.matchers} - {"instance", "job"}
        assert labels <= exported[selector.name], f"{where}: {selector.name} has no {labels}"


def test_every_alert_is_on_the_page_for_operators() -> None:
    (rules,) = documents(DOCKER / "observe/alerts.yaml")
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    for rule in rules["groups"][0]["rules"]:
        assert f"`{rule['alert']}`" in page
