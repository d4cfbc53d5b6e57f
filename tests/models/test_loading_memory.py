"""While a checkpoint is loaded, memory grows by the quantised weights and one of its files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from headstock.checkpoint.mapping import MappedFile

SIZE, INNER, LAYERS, VOCAB = 512, 2048, 12, 2048
SLACK = 16 << 20
"""For pieces in conversion, and what the allocator keeps."""
COPIES = 5 * 4 * INNER * SIZE
"""Bytes of float32 copies of the largest matrix, which is one piece, while it is made smaller."""

LOAD = """
import sys
from pathlib import Path
import torch
from headstock.checkpoint.folder import open_folder
from headstock.graph.build import build_model
from headstock.graph.loader import load_weights, weight_bytes
from headstock.plugins.models import installed_models
from headstock.testing.oracle.sequences import context

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(1)
asked = sys.argv[2] or None
ctx, files = context(dtype=torch.bfloat16, quantization=asked), open_folder(Path(sys.argv[1]))
model = build_model(installed_models().load(files.architecture), ctx, files.config)
files.rename(model.named)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
load_weights(model, files, ctx)
print(peak() - before, weight_bytes(model))
"""


def fp8(rows: int, columns: int) -> dict[str, Tensor]:
    weight = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    return {"weight": weight, "weight_scale": torch.rand(rows, 1)}


def gptq(rows: int, columns: int) -> dict[str, Tensor]:
    words = torch.randint(-(1 << 31), 1 << 31, (columns // 8, rows))
    groups = columns // 128
    zeros = torch.randint(-(1 << 31), 1 << 31, (groups, rows // 8))
    scales = torch.rand(groups, rows).half()
    return {"qweight": words.int(), "qzeros": zeros.int(), "scales": scales}


def dense(rows: int, columns: int) -> dict[str, Tensor]:
    return {"weight": torch.randn(rows, columns).bfloat16()}


FORMATS: dict[str, tuple[dict[str, object] | None, Callable[[int, int], dict[str, Tensor]]]] = {
    "dense": (None, dense),
    "fp8": ({"quant_method": "fp8"}, fp8),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, gptq),
}


def write(path: Path, name: str) -> int:
    """Write a Llama with a file for each layer; return the size of the largest."""
    quantization, draw = FORMATS[name]
    path.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": SIZE,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    }
    if quantization is not None:
        config["quantization_config"] = quantization
    (path / "config.json").write_text(json.dumps(config))
    inner = {"mlp.gate_proj": (INNER, SIZE), "mlp.up_proj": (INNER, SIZE)}
    shapes = inner | {"mlp.down_proj": (SIZE, INNER)}
    shapes |= {f"self_attn.{name}_proj": (SIZE, SIZE) for name in "qkvo"}
    whole = {
        f"{name}.weight": torch.randn(VOCAB, SIZE) for name in ("model.embed_tokens", "lm_head")
    }
    save_file(
        {n: t.bfloat16() for n, t in {**whole, "model.norm.weight": torch.ones(SIZE)}.items()},
        path / "model-00.safetensors",
    )
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        parts = {
            f"{prefix}{module}.{part}": tensor
            for module, shape in shapes.items()
            for part, tensor in draw(*shape).items()
        }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            parts[f"{prefix}{norm}.weight"] = torch.ones(SIZE).bfloat16()
        save_file(parts, path / f"model-{layer + 1:02}.safetensors")
    return max(file.stat().st_size for file in path.glob("*.safetensors"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("name", "asked"),
    [("fp8", ""), ("gptq", ""), ("dense", "int8"), ("dense", "int4"), ("dense", "fp8")],
)
def test_loading_holds_the_quantised_weights_and_one_file(
    tmp_path: Path, name: str, asked: str
) -> None:
    """Of a format, and of what the operator has made smaller while it is read."""
    file_bytes = write(tmp_path / "m", name)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "m"), asked],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, weights = (int(number) for number in done.stdout.split()[-2:])
    dense = 2 * (LAYERS * (4 * SIZE * SIZE + 3 * SIZE * INNER) + 2 * VOCAB * SIZE)
    assert weights < 0.6 * dense
    slack = SLACK + (COPIES if asked else 0)
    assert grown <= weights + file_bytes + slack < dense + slack


def test_pages_that_were_released_have_what_they_had(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, 1 << 16, np.uint8)
    (tmp_path / "f").write_bytes(values.tobytes())
    file = MappedFile(tmp_path / "f")
    view = file.data[100:200]
    assert (file.data == values).all()
    file.release()
    assert (view == values[100:200]).all()
    assert (file.data == values).all()


def test_an_empty_file_has_nothing_to_release(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    file = MappedFile(tmp_path / "f")
    file.release()
    assert file.data.size == 0
