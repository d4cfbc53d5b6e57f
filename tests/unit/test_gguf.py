"""GGUF files: what is read from them, against the format's own package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from headstock.checkpoint.gguf_blocks import BLOCKS, Parts
from headstock.checkpoint.gguf_file import GGUFFile
from headstock.checkpoint.gguf_model import hugging_face_name, open_gguf
from headstock.errors import CheckpointError, UnsupportedError
from tests.unit.gguf_files import HIDDEN, TOKENS, VOCAB, llama_tensors, split_gguf, write_gguf

EXACT = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q5_0", "Q4_K", "Q6_K"]
EXACT += ["Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "MXFP4"]
GRIDS = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
EXACT += [*GRIDS, "TQ1_0", "TQ2_0"]
ROUNDED = ["Q5_1", "Q5_K"]
HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q5_0": (0,), "Q5_1": (0, 2)}
HALVES |= {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q2_K": (80, 82), "Q3_K": (108,)}
HALVES |= {"IQ4_NL": (0,), "IQ4_XS": (0,), "MXFP4": (), "IQ1_M": ()}
HALVES |= {name: (0,) for name in GRIDS if name != "IQ1_M"} | {"TQ1_0": (52,), "TQ2_0": (64,)}
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def random_blocks(name: str, num_rows: int = 5, seed: int = 0) -> NDArray[np.uint8]:
    """Return rows of blocks with any bits, but for scales, which are finite numbers."""
    draw = np.random.default_rng(seed)
    block = BLOCKS[Type[name]]
    blocks = draw.integers(0, 256, (num_rows, 512 // block.elements, block.num_bytes), np.uint8)
    if not block.group_size:
        values = draw.standard_normal((num_rows, 512)).astype(np.float32)
        return np.ascontiguousarray(gguf.quantize(values, Type[name])).view(np.uint8)
    for begin in HALVES[name]:
        scales = draw.standard_normal(blocks.shape[:2]).astype(np.float16)
        blocks[..., begin : begin + 2] = scales[..., None].view(np.uint8)
    if name == "IQ1_M":  # its scale's nibbles are in four bytes: no exponent of infinity
        blocks[..., 55] &= 0xBF
    if name == "MXFP4":
        blocks[..., 0] = draw.integers(0, 140, blocks.shape[:2])
    return blocks.reshape(num_rows, -1)


def values(name: str, parts: Parts) -> NDArray[np.float32]:
    """Return what canonical parts stand for."""
    weight = parts["weight"]
    if name == "BF16":
        return (weight.astype(np.uint32) << 16).view(np.float32)
    if BLOCKS[Type[name]].layout in ("int4-group", "mxfp4"):
        weight = np.stack((weight & 15, weight >> 4), axis=-1).reshape(len(weight), -1)
    if name == "MXFP4":
        weight = FP4[weight]
    if "scale" not in parts:
        return weight.astype(np.float32)
    groups = weight.reshape(*parts["scale"].shape, -1).astype(np.float32)
    groups = groups * parts["scale"][..., None]
    if "minimum" in parts:
        groups = groups + parts["minimum"][..., None]
    return groups.reshape(len(weight), -1)


def expected(name: str, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    data = {"F32": rows.view(np.float32), "F16": rows.view(np.float16)}.get(name, rows)
    return gguf.dequantize(data, Type[name])


@pytest.mark.parametrize("name", EXACT)
def test_blocks_become_canonical_exactly(name: str) -> None:
    rows = random_blocks(name)
    got = values(name, BLOCKS[Type[name]].convert(rows))
    np.testing.assert_allclose(got, expected(name, rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ROUNDED)
def test_five_bits_with_a_minimum_are_rounded_to_half_a_step_of_eight(name: str) -> None:
    rows = random_blocks(name)
    want = expected(name, rows).reshape(5, -1, 32)
    got = values(name, BLOCKS[Type[name]].convert(rows)).reshape(want.shape)
    bound = np.abs(want).max(axis=-1, keepdims=True) / 254 * 1.001
    assert (np.abs(got - want) <= bound).all()


@pytest.mark.parametrize("name", [*EXACT, *ROUNDED])
def test_rows_convert_alike_whatever_their_neighbours(name: str) -> None:
    rows = random_blocks(name)
    whole, part = BLOCKS[Type[name]].convert(rows), BLOCKS[Type[name]].convert(rows[2:4])
    for kind, array in part.items():
        np.testing.assert_array_equal(array, whole[kind][2:4])


@pytest.mark.parametrize("name", GRIDS)
def test_every_point_of_a_grid_is_the_format_s(name: str) -> None:
    """Random blocks of as many rows as show each index, at each place of a block."""
    rows = random_blocks(name, num_rows=600, seed=1)
    got = values(name, BLOCKS[Type[name]].convert(rows))
    np.testing.assert_array_equal(got, expected(name, rows))


def test_block_sizes_are_the_format_s() -> None:
    sizes = {Type(n): (b.elements, b.num_bytes) for n, b in BLOCKS.items()}
    assert sizes == {kind: gguf.GGML_QUANT_SIZES[kind] for kind in sizes}


def test_a_file_reads_as_the_format_s_own_reader_has_it(tmp_path: Path) -> None:
    tensors = llama_tensors()
    path = write_gguf(tmp_path / "m.gguf", tensors, types={"token_embd.weight": Type.Q8_0})
    file = GGUFFile(path)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert file.tensors.keys() == theirs.keys()
    for name, tensor in file.tensors.items():
        np.testing.assert_array_equal(
            file.blocks(tensor).ravel(),
            np.ascontiguousarray(theirs[name].data).view(np.uint8).ravel(),
        )


def test_the_configuration_is_in_hugging_face_s_keys(tmp_path: Path) -> None:
    files = open_gguf(write_gguf(tmp_path / "m.gguf"))
    assert files.architecture == "LlamaForCausalLM"
    assert files.eos_ids == [2]
    assert files.max_length() == 512
    wanted = {"hidden_size": HIDDEN, "head_dim": 8, "num_key_value_heads": 2, "vocab_size": VOCAB}
    assert wanted.items() <= files.config.items()
    assert files.config["tie_word_embeddings"] is False


@pytest.mark.parametrize(("kind", "dtype"), [(Type.F32, "float32"), (Type.Q8_0, "bfloat16")])
def test_the_dtype_is_that_of_most_weights(tmp_path: Path, kind: Type, dtype: str) -> None:
    tensors = llama_tensors()
    types = {name: kind for name, tensor in tensors.items() if tensor.ndim == 2}
    assert open_gguf(write_gguf(tmp_path / "m.gguf", tensors, types=types)).dtype == dtype


def test_a_file_without_an_output_layer_is_tied(tmp_path: Path) -> None:
    tensors = llama_tensors()
    del tensors["output.weight"]
    files = open_gguf(write_gguf(tmp_path / "m.gguf", tensors))
    assert files.config["tie_word_embeddings"] is True


def test_rotary_factors_come_from_their_tensor(tmp_path: Path) -> None:
    factors = np.array([1, 1, 2, 8], np.float32)
    tensors = llama_tensors() | {"rope_freqs.weight": factors}
    files = open_gguf(write_gguf(tmp_path / "m.gguf", tensors))
    assert files.config["rope_parameters"]["factors"] == [1, 1, 2, 8]
    assert "rope_freqs.weight" not in files.index


def test_yarn_comes_from_the_metadata(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 128}
    metadata = {f"llama.rope.scaling.{key}": value for key, value in scaling.items()}
    files = open_gguf(write_gguf(tmp_path / "m.gguf", metadata=metadata))
    assert files.config["rope_parameters"] == {
        "rope_theta": 10000.0,
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }


def test_query_rows_are_in_hugging_face_s_order(tmp_path: Path) -> None:
    tensors = llama_tensors()
    files = open_gguf(write_gguf(tmp_path / "m.gguf", tensors))
    stored = files.index["model.layers.0.self_attn.q_proj.weight"].read(8, 16)["weight"]
    np.testing.assert_array_equal(
        stored, tensors["blk.0.attn_q.weight"][[8, 10, 12, 14, 9, 11, 13, 15]]
    )


def test_the_tokenizer_is_read(tmp_path: Path) -> None:
    read = open_gguf(write_gguf(tmp_path / "m.gguf")).read_tokenizer
    assert read is not None
    tokenizer = read()
    assert (tokenizer.model, tokenizer.pre) == ("gpt2", "smollm")
    assert tokenizer.tokens == TOKENS
    assert tokenizer.merges == ["a b", "c d"]
    assert tokenizer.special_ids == {"bos": 1, "eos": 2}
    assert tokenizer.flags == {"add_bos_token": False}


@pytest.mark.parametrize("key", ["llama.block_count", "llama.attention.head_count"])
def test_sizes_that_the_tensors_belie_are_refused(tmp_path: Path, key: str) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    content = bytearray(path.read_bytes())
    at = content.index(key.encode()) + len(key) + 4
    content[at : at + 4] = (2**30).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="claims"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("blk.11.ffn_down.weight", "model.layers.11.mlp.down_proj.weight"),
        ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
        ("output.weight", "lm_head.weight"),
        ("blk.0.something_new.weight", "blk.0.something_new.weight"),
    ],
)
def test_names_become_hugging_face_s(ours: str, theirs: str) -> None:
    assert hugging_face_name(ours) == theirs


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", architecture="lama")
    with pytest.raises(UnsupportedError, match=r"'lama'.* Did you mean 'llama'"):
        open_gguf(path)


def test_an_unknown_block_type_is_refused_with_those_that_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = llama_tensors() | {"blk.0.extra.weight": np.zeros((1, 256), np.float32)}
    path = write_gguf(tmp_path / "m.gguf", tensors, types={"blk.0.extra.weight": Type.TQ1_0})
    monkeypatch.delitem(BLOCKS, int(Type.TQ1_0))  # the package writes none that is not known
    with pytest.raises(CheckpointError, match=r"blk.0.extra.weight has GGUF type 34"):
        open_gguf(path)


def test_a_part_whose_name_has_no_number_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata={"split.count": 3})
    with pytest.raises(CheckpointError, match="one of 3 parts of a model; its name says no number"):
        open_gguf(path)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_split_model_is_read_whole_whichever_part_is_named(tmp_path: Path, number: int) -> None:
    whole = open_gguf(write_gguf(tmp_path / "w.gguf"))
    parts = split_gguf(tmp_path, "m")
    files = open_gguf(parts[number - 1])
    assert files.name == "m"
    assert files.config == whole.config
    assert files.index.keys() == whole.index.keys()
    for name, tensor in files.index.items():
        np.testing.assert_array_equal(
            tensor.read_all()["weight"], whole.index[name].read_all()["weight"]
        )
    assert files.read_tokenizer is not None
    assert files.read_tokenizer().tokens == TOKENS


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    parts = split_gguf(tmp_path, "m")
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"1 are not there: m-00002-of-00003.gguf"):
        open_gguf(parts[0])


def test_a_part_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    parts = split_gguf(tmp_path, "m")
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(CheckpointError, match=r"says that it is part 2 of 3.*makes it 1 of 3"):
        open_gguf(parts[0])


def test_parts_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    parts = split_gguf(tmp_path, "m", num_claimed=99)
    with pytest.raises(CheckpointError, match="all parts have 99 tensors; they have 12"):
        open_gguf(parts[0])


def test_parts_that_have_a_tensor_twice_are_refused(tmp_path: Path) -> None:
    parts = split_gguf(tmp_path, "m", repeated="blk.0.attn_q.weight")
    with pytest.raises(CheckpointError, match=r"has blk.0.attn_q.weight, which a part before"):
        open_gguf(parts[0])
