"""Files that lie: one typed error, at once, that names file and key."""

import json
import os
import struct

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


LIMIT_S = 1.0
"""Of processor time: how long that takes on a machine that does nothing else."""


def spent_s():
    """Return the processor time of this process, all threads, and of children that have ended."""
    return sum(os.times()[:4])


def folder_of(path, config):
    path.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "config.json").write_text(text)
    return str(path)


def refused(call):
    begun_s = spent_s()
    with pytest.raises(TYPED) as caught:
        call()
    assert spent_s() - begun_s < LIMIT_S
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
    assert "m.gguf" in refused(lambda: resolve(str(tmp_path / "m.gguf"), None))


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


def many(count, text):
    return f"[{','.join([text] * count)}]"


def listed(opening, form, count):
    return f"{opening}{','.join(form % n for n in range(count))}"


MANY = {
    "lists": lambda: many(11_000_000, "[]"),
    "numbers": lambda: many(16_000_000, "1"),
    "long numbers": lambda: many(7_000, "9" * 4299),
    "keys": lambda: listed("{", '"%d":1', 2_000_000) + "}",
    "places": lambda: listed('{"weight_map":{', '"%d":"file"', 1_400_000) + "}}",
    "fewer places": lambda: listed('{"weight_map":{', '"%d":"file"', 700_000) + "}}",
}
"""Nearly as many bytes as are read."""


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("kind", MANY)
def test_json_of_millions_of_values_is_refused_soon(tmp_path, name, kind):
    folder = folder_of(tmp_path / "m", GOOD)
    (tmp_path / "m" / name).write_text(MANY[kind]())
    why = refused(lambda: resolve(folder, None))
    assert (name in why) == (kind != "fewer places")  # these are read, and their file is missing


ENTRY = '"%08d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'


@pytest.mark.parametrize(
    "header",
    [
        lambda: '{"a":' + many(33_000_000, "[]") + "}",
        lambda: '{"a":{"dtype":"F32","data_offsets":[0,4],"shape":' + many(40_000_000, "1") + "}}",
        lambda: listed("{", ENTRY, 1_500_000) + "}",
        lambda: listed("{", ENTRY, 200_000) + ',"a":1}',
    ],
    ids=["lists", "sizes", "tensors", "the last one"],
)
def test_large_safetensors_headers_that_lie_are_refused_soon(tmp_path, header):
    path = safetensors(tmp_path / "m.safetensors", header())
    assert "m.safetensors" in refused(lambda: list(read_safetensors(path)))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "tokenizer.model"])
def test_tokenizer_files_of_any_size_are_refused_soon(tmp_path, name):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)
    assert name in refused(lambda: Tokenizer.from_folder(tmp_path))


def field(number, data):
    """Return a field of bytes as Protocol Buffers have it."""
    size, length = len(data), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


PIECES = {
    "fields": lambda: b"\x48\x01" * 8_000_000,
    "fields of a piece": lambda: field(1, b"\x48\x01" * 8_000_000),
    "a long piece": lambda: field(1, field(1, b"a" * 8_000_000)),
    "long pieces": lambda: b"".join(field(1, field(1, b"%04d" % n * 250)) for n in range(10_000)),
}


@pytest.mark.parametrize("kind", PIECES)
def test_sentencepiece_vocabularies_that_cost_too_much_are_refused_soon(tmp_path, kind):
    (tmp_path / "tokenizer.model").write_bytes(PIECES[kind]() + field(1, b"\x18\x02"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    refused(lambda: Tokenizer.from_folder(tmp_path))


def gguf(path, num_tensors, num_keys, rest, size):
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys) + rest)
    os.truncate(path, size)  # the rest is zeros, which take no room on the disk
    return str(path)


@pytest.mark.parametrize(
    ("num_tensors", "num_keys", "rest"),
    [
        (2**26, 0, b""),
        (0, 2**27, b""),
        (0, 1, struct.pack("<QcIIQ", 1, b"x", 9, 8, 2**27)),
        (0, 1, struct.pack("<QcIIQ", 1, b"x", 9, 0, 2**30)),
        (0, 1, struct.pack("<QcIIQ", 1, b"x", 9, 9, 2**27)),
    ],
    ids=["tensors", "keys", "texts", "numbers", "arrays"],
)
def test_a_gguf_that_counts_without_end_is_refused_soon(tmp_path, num_tensors, num_keys, rest):
    place = gguf(tmp_path / "m.gguf", num_tensors, num_keys, rest, 2**31)
    assert "m.gguf is not a whole GGUF file: it claims" in refused(lambda: resolve(place, None))
