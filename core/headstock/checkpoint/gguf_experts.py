"""Experts that a GGUF file keeps in one tensor a layer, as a tensor for each expert. No torch.

``ffn_gate_exps.weight``, ``ffn_up_exps.weight`` [E, F, D] and ``ffn_down_exps.weight`` [E, D, F],
in blocks; in some families ``.bias`` [E, F] or [E, D] beside them.

Shapes: E experts, D hidden size, F features between an expert's matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from headstock.checkpoint.files import Array, StoredTensor
from headstock.checkpoint.gguf_file import GGUFFile, TensorInfo
from headstock.errors import CheckpointError

STACKED = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def split_experts(file: GGUFFile, info: TensorInfo, name: str) -> Iterator[StoredTensor]:
    """Yield each expert's matrix or bias.

    Args:
        file: That has it.
        info: A stacked tensor.
        name: Of one expert's, with ``{}`` for its number.

    Raises:
        CheckpointError: It has another number of dimensions.
    """
    count = 2 if name.endswith(".bias") else 3
    if len(info.shape) != count:
        raise CheckpointError(
            f"{file.path}: {info.name} is {list(info.shape)}; {count} dimensions are expected.",
            remedy="Download the file again.",
        )
    num_experts, *shape = info.shape
    for expert in range(num_experts):
        yield StoredTensor(
            name=name.format(expert),
            shape=tuple(shape),
            dtype=info.block.dtype,
            layout=info.block.layout,
            group_size=info.block.group_size,
            num_bytes=info.num_bytes // num_experts,
            file=info.file,
            read=partial(_read, file, info, expert),
        )


def _read(file: GGUFFile, info: TensorInfo, expert: int, begin: int, end: int) -> dict[str, Array]:
    """Return rows of one expert's matrix, or elements of its bias, in canonical parts."""
    blocks, convert = file.blocks(info), info.block.convert
    if len(info.shape) == 2:
        return {"weight": convert(blocks[expert : expert + 1])["weight"].ravel()[begin:end]}
    first = expert * info.shape[1]
    return convert(blocks[first + begin : first + end])
