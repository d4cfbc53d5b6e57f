"""Files that lie: one typed error, at once, that names file and key."""

import json
import os
import struct
import time

import pytest

from headstock.checkpoint import resolve
from headstock.checkpoint.safetensors_file import read_safetensors
from headstock.errors import CheckpointError, ConfigError, UnsupportedError
from headstock.text import Tokenizer
from tests.server.toy_tokenizer import toy_backend

GOOD = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64,
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "eos_token_id": 2, "torch_dtype": "float32",
}  # fmt: skip
TYPED = (CheckpointError, ConfigError, UnsupportedError)
NAN, INF = float("nan"), float("inf")
LIES = [
    *[("vocab_size", v) for v in (None, 0, -1, "64", 1e3, 10**9, 10**30, True, [])],
    *[("hidden_size", v) for v in (0, -64, 10**9, "x", NAN)],
    *[("num_hidden_layers", v) for v in (0, -1, 10**9, 2.5, [1], {})],
    *[("num_attention_heads", v) for v in (0, -1, 10**9)],
    *[("num_key_value_heads", v) for v in (0, -1, 10**9)],
    *[("head_dim", v) for v in (0, -1, 10**9)],
    *[("max_position_embeddings", v) for v in ("x", 0, -1, 10**12)],
    *[("rms_norm_eps", v) for v in (NAN, INF, -1, 0, "x")],
    *[("rope_theta", v) for v in (NAN, INF, 0, -1, "x")],
    *[("eos_token_id", v) for v in ("x", [None], -5, 10**12, {}, [[1]], 1.5)],
    ("torch_dtype", "evil"), ("architectures", [1]), ("architectures", "x"),
    ("architectures", {}), ("rope_scaling", "x"), ("text_config", 3),
]  # fmt: skip


def folder_of(path, config):
    path.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "config.json").write_text(text)
    return str(path)


def refused(call):
    begun = time.monotonic()
    with pytest.raises(TYPED) as caught:
        call()
    assert time.monotonic() - begun < 2  # 1 s on a machine with nothing else to do
    return str(caught.value)


def test_the_honest_one_is_taken(tmp_path):
    assert resolve(folder_of(tmp_path / "m", GOOD), None, needs_weights=False).config == GOOD


@pytest.mark.parametrize(("key", "value"), LIES, ids=str)
def test_a_value_that_no_model_has_is_refused_by_file_and_key(tmp_path, key, value):
    config = {k: v for k, v in {**GOOD, key: value}.items() if v is not None}
    folder = folder_of(tmp_path / "m", config)
    message = refused(lambda: resolve(folder, None, needs_weights=False).vocab_size)
    assert str(tmp_path) in message
    assert key in message


@pytest.mark.parametrize(
    ("key", "value"), [("eos_token_id", "x"), ("max_new_tokens", "x"), ("temperature", NAN)]
)
def test_generation_configs_that_lie_are_refused(tmp_path, key, value):
    folder = folder_of(tmp_path / "m", GOOD)
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({key: value}))
    assert key in refused(lambda: resolve(folder, None, needs_weights=False))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_deep_json_is_refused(tmp_path, name):
    folder = folder_of(tmp_path / "m", GOOD)
    (tmp_path / "m" / name).write_text(DEEP)
    assert name in refused(lambda: resolve(folder, None))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
@pytest.mark.parametrize("kind", ["fifo", "zero"])
def test_special_files_are_refused(tmp_path, name, kind):
    folder = folder_of(tmp_path / "m", GOOD)
    path = tmp_path / "m" / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    assert "not a regular file" in refused(lambda: resolve(folder, None))


def test_a_gguf_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    refused(lambda: resolve(str(tmp_path / "m.gguf"), None))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_tokenizer_files_that_lie_are_refused(tmp_path, name):
    toy_backend().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("/dev/zero")
    assert "not a regular file" in refused(lambda: Tokenizer.from_folder(tmp_path))
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(b"\xff\xfe" if name.endswith("jinja") else DEEP.encode())
    refused(lambda: Tokenizer.from_folder(tmp_path))


def safetensors(path, header, size=64):
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


def tensor(begin, end, shape=None):
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor(0, 32), "b": tensor(16, 48)},
        {"a": tensor(0, 32), "b": tensor(0, 32)},
        {"a": tensor(0, 0, [2**32, 2**32, 0])},
        '{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}',
        '{"a": ' + DEEP + "}",
    ],
    ids=["overlap", "equal", "huge", "infinite", "deep"],
)
def test_safetensors_that_lie_are_refused(tmp_path, header):
    path = safetensors(tmp_path / "m.safetensors", header)
    assert "m.safetensors" in refused(lambda: list(read_safetensors(path)))


def test_empty_tensors_may_lie_anywhere(tmp_path):
    header = {"a": tensor(0, 32), "b": tensor(16, 16), "c": tensor(32, 64)}
    found = list(read_safetensors(safetensors(tmp_path / "m.safetensors", header)))
    assert {t.name for t in found} == {"a", "b", "c"}
