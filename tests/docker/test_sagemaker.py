"""The SageMaker container: its entry, the scripts that build it, and the notebook."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.docker.cloud import Cloud
from tests.e2e.served import wait_for

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "docker/sagemaker/serve"
PATHS = "/usr/bin:/bin"

RECORDER = """#!/bin/bash
printf '%s\\n' "${0##*/}" "$@" >> "$RECORD"; echo --- >> "$RECORD"
"""


def program(folder: Path, name: str, more: str = "") -> None:
    """Put a program into ``folder`` that writes down how it was called."""
    path = folder / name
    path.write_text(RECORDER + more)
    path.chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def recorded(tmp_path: Path) -> list[list[str]]:
    text = (tmp_path / "record").read_text()
    return [call.split("\n")[:-1] for call in text.split("---\n")[:-1]]


def serve(
    tmp_path: Path, bin_folder: Path, files: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the container's entry in an environment of nothing else, over a folder of ``files``."""
    model = tmp_path / "ml" / "model"
    model.mkdir(parents=True)
    for name in files:
        (model / name).touch()
    program(bin_folder, "headstock")
    return subprocess.run(
        [SERVE],
        env={
            "PATH": f"{bin_folder}:{PATHS}",
            "SAGEMAKER_BASE_DIR": str(tmp_path / "ml"),
            "RECORD": str(tmp_path / "record"),
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_entry_of_images_hands_its_words_on(tmp_path: Path, bin_folder: Path) -> None:
    program(bin_folder, "headstock")
    subprocess.run(
        [ROOT / "docker/entry", "serve", "a model", "--port", "1"],
        env={"PATH": f"{bin_folder}:{PATHS}", "RECORD": str(tmp_path / "record")},
        check=True,
    )
    assert recorded(tmp_path) == [["headstock", "serve", "a model", "--port", "1"]]


HOST = ["--host", "0.0.0.0", "--port", "8080"]


@pytest.mark.parametrize(
    ("files", "variables", "model", "flags"),
    [
        (("config.json",), {}, "{folder}", HOST),
        (("config.json",), {"HF_MODEL_ID": "a/b"}, "{folder}", HOST),
        (("m.gguf",), {}, "{folder}/m.gguf", HOST),
        ((), {"HF_MODEL_ID": "a/b"}, "a/b", HOST),
        ((), {"HF_MODEL_ID": "a/b", "HF_MODEL_REVISION": "v1"}, "a/b", [*HOST, "--revision", "v1"]),
        (("config.json",), {"HF_MODEL_REVISION": "v1"}, "{folder}", HOST),
        ((), {"HEADSTOCK_MODEL": "smollm2"}, "smollm2", HOST),
        (
            ("config.json",),
            {"SAGEMAKER_BIND_TO_PORT": "8500"},
            "{folder}",
            ["--host", "0.0.0.0", "--port", "8500"],
        ),
        (("config.json",), {"SM_NUM_GPUS": "4"}, "{folder}", [*HOST, "--tp-size", "4"]),
        (
            ("config.json",),
            {"SM_HEADSTOCK_MAX_MODEL_LEN": "4096"},
            "{folder}",
            [*HOST, "--max-model-len", "4096"],
        ),
        (
            ("config.json",),
            {"SM_SGLANG_DISABLE_RADIX_CACHE": "true"},
            "{folder}",
            [*HOST, "--disable-radix-cache"],
        ),
        (
            ("config.json",),
            {"SM_VLLM_ENFORCE_EAGER": "False", "SM_VLLM_SERVED_MODEL_NAME": "a name"},
            "{folder}",
            [*HOST, "--served-model-name", "a name"],
        ),
    ],
)
def test_the_environment_becomes_flags(
    tmp_path: Path,
    bin_folder: Path,
    files: tuple[str, ...],
    variables: dict[str, str],
    model: str,
    flags: list[str],
) -> None:
    done = serve(tmp_path, bin_folder, files, **variables)
    assert done.returncode == 0, done.stderr
    folder = str(tmp_path / "ml" / "model")
    assert recorded(tmp_path) == [["headstock", "serve", model.format(folder=folder), *flags]]


@pytest.mark.parametrize(
    ("files", "says"),
    [((), "There is no model in"), (("a.gguf", "b.gguf"), "has 2 GGUF files")],
)
def test_a_folder_without_one_model_is_refused(
    tmp_path: Path, bin_folder: Path, files: tuple[str, ...], says: str
) -> None:
    done = serve(tmp_path, bin_folder, files)
    assert done.returncode == 2
    assert says in done.stderr
    assert "  -> " in done.stderr
    assert not (tmp_path / "record").exists()


def test_the_variables_of_the_entry_are_documented() -> None:
    page = (ROOT / "docker/README.md").read_text(encoding="utf-8")
    for variable in (
        "SAGEMAKER_BASE_DIR", "SAGEMAKER_BIND_TO_PORT", "HF_MODEL_ID", "HF_MODEL_REVISION",
        "SM_NUM_GPUS", "SM_HEADSTOCK_", "SM_SGLANG_", "SM_VLLM_", "HEADSTOCK_MODEL",
    ):  # fmt: skip
        assert variable in SERVE.read_text(encoding="utf-8")
        assert f"`{variable}" in page, variable


AWS = """
case "$1 $2" in
    "configure get") echo eu-central-1 ;;
    "sts get-caller-identity") echo 123456789012 ;;
    "ecr describe-repositories") exit "$MISSING" ;;
    "ecr get-login-password") echo secret ;;
esac
"""


@pytest.mark.parametrize("missing", [0, 254])
def test_the_image_is_built_and_pushed_from_ec2(
    tmp_path: Path, bin_folder: Path, missing: int
) -> None:
    program(bin_folder, "aws", AWS)
    program(bin_folder, "docker", 'test "$1" != login || test "$(cat)" = secret')
    done = subprocess.run(
        [ROOT / "docker/sagemaker/build-ec2.sh", "xeon", "llms"],
        env={
            "PATH": f"{bin_folder}:{PATHS}",
            "RECORD": str(tmp_path / "record"),
            "MISSING": str(missing),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    image = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/llms:xeon"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == image
    calls = [" ".join(call) for call in recorded(tmp_path)]
    assert any(call.startswith("aws ecr create-repository") for call in calls) == bool(missing)
    assert calls[-2] == (
        "docker build --file docker/Dockerfile --target sagemaker --platform linux/amd64"
        f" --build-arg BACKEND=xeon --tag {image} ."
    )
    assert calls[-1] == f"docker push {image}"


def run_notebook(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the notebook's cells, one after another, and return its names."""
    notebook = json.loads((ROOT / "docker/sagemaker/studio.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    patch.chdir(ROOT)
    patch.setenv("HEADSTOCK_SAGEMAKER_ROLE", "arn:aws:iam::123456789012:role/sagemaker")
    patch.setattr("time.sleep", lambda _: None)
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    return names


def build(status: str) -> dict[str, Any]:
    return {"id": "headstock-image:1", "buildStatus": status, "logs": {"deepLink": "LOGS"}}


def answers(last_status: str = "SUCCEEDED") -> dict[str, Any]:
    said = json.dumps({"choices": [{"message": {"content": "Paris."}}]}).encode()
    in_service = {
        "EndpointName": "headstock",
        "EndpointArn": "arn:aws:sagemaker:eu-central-1:123456789012:endpoint/headstock",
        "CreationTime": 0,
        "LastModifiedTime": 0,
    }
    return {
        "GetCallerIdentity": {"Account": "123456789012"},
        "DescribeRepositories": {"Error": {"Code": "RepositoryNotFoundException", "Message": ""}},
        "StartBuild": {"build": build("IN_PROGRESS")},
        "BatchGetBuilds": [
            {"builds": [build("IN_PROGRESS")]},
            {"builds": [build(last_status)]},
        ],
        "DescribeEndpoint": [
            in_service | {"EndpointStatus": "Creating"},
            in_service | {"EndpointStatus": "InService"},
        ],
        "CreateModel": {"ModelArn": "arn:aws:sagemaker:eu-central-1:123456789012:model/headstock"},
        "CreateEndpointConfig": {
            "EndpointConfigArn": "arn:aws:sagemaker:eu-central-1:123456789012:endpoint-config/a"
        },
        "CreateEndpoint": {"EndpointArn": in_service["EndpointArn"]},
        "InvokeEndpoint": {"Body": io.BytesIO(said)},
    }


def test_the_notebook_builds_pushes_and_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3", reason="pip install headstock[dev]")
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the notebook packs the commit of a clone")
    cloud = Cloud(answers())
    cloud.install(monkeypatch)
    names = run_notebook(monkeypatch)
    image = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/headstock:cuda"
    assert names["image"] == image
    assert names["text"] == "Paris."
    assert cloud.names == [
        "GetCallerIdentity", "DescribeRepositories", "CreateRepository", "PutObject",
        "CreateProject", "StartBuild", "BatchGetBuilds", "BatchGetBuilds", "CreateModel",
        "CreateEndpointConfig", "CreateEndpoint", "DescribeEndpoint", "DescribeEndpoint",
        "InvokeEndpoint", "DeleteEndpoint", "DeleteEndpointConfig", "DeleteModel",
    ]  # fmt: skip
    spec = cloud.asked("CreateProject")["source"]["buildspec"]
    commands = yaml.safe_load(spec)["phases"]["build"]["commands"]
    assert commands == [
        "docker build -f docker/Dockerfile --target sagemaker --build-arg BACKEND=cuda"
        f" -t {image} .",
        f"docker push {image}",
    ]
    container = cloud.asked("CreateModel")["PrimaryContainer"]
    assert container["Image"] == image
    assert container["Environment"]["HF_MODEL_ID"] == names["MODEL"]


def test_the_notebook_stops_where_the_build_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3", reason="pip install headstock[dev]")
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the notebook packs the commit of a clone")
    cloud = Cloud(answers("FAILED"))
    cloud.install(monkeypatch)
    with pytest.raises(RuntimeError, match="ended as FAILED: see LOGS"):
        run_notebook(monkeypatch)
    assert "CreateModel" not in cloud.names


@pytest.fixture
def endpoint(tmp_path: Path, model: str) -> Iterator[str]:
    """What SageMaker would start, with a model where SageMaker puts it; yields its address."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / Path(model).name).symlink_to(model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "headstock"
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -m headstock.cli "$@"\n')
    program.chmod(0o755)
    process = subprocess.Popen(
        [SERVE],
        cwd=tmp_path,
        env={
            "PATH": f"{programs}:{PATHS}",
            "HOME": str(tmp_path),
            "SAGEMAKER_BASE_DIR": str(tmp_path),
            "SAGEMAKER_BIND_TO_PORT": str(port),
            "SM_HEADSTOCK_MAX_MODEL_LEN": "512",
            "SM_SGLANG_MAX_TOTAL_TOKENS": "2048",
            "SM_VLLM_MAX_NUM_SEQS": "4",
            "HEADSTOCK_THREADS": "1",
        },
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_the_entry_serves_the_model_of_its_folder(endpoint: str) -> None:
    def answers_ping() -> bool:
        try:
            return httpx.get(f"{endpoint}/ping").status_code == 200
        except httpx.HTTPError:
            return False

    wait_for(answers_ping, 120, "an answer to /ping")
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 16,
    }
    answer = httpx.post(f"{endpoint}/invocations", json=body, timeout=60)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    info = httpx.get(f"{endpoint}/server_info").json()
    assert info["max_model_len"] == 512
