"""Opens a GGUF model that is in one file, or split into NAME-00001-of-00003.gguf and so on.

The first part has the metadata; each has tensors of its own, and says its number.
"""

from __future__ import annotations

import re
from pathlib import Path

from headstock.checkpoint.gguf_file import GGUFFile
from headstock.errors import CheckpointError

MAX_PARTS = 99_999
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


def open_parts(path: Path) -> GGUFFile:
    """Return the file that has the metadata, with the tensors of all parts.

    Args:
        path: The only file, or any part.

    Raises:
        CheckpointError: A part is not there, or belongs to another model.
    """
    file = GGUFFile(path)
    num_parts = file.metadata.get("split.count", 1)
    if num_parts in (0, 1):
        return file
    match = _PART.fullmatch(path.name)
    if not isinstance(num_parts, int) or num_parts > MAX_PARTS or match is None:
        raise CheckpointError(
            f"{path} is one of {num_parts} parts of a model; its name says no number.",
            remedy="Name the parts as they were published: NAME-00001-of-0000N.gguf.",
        )
    paths = [
        path.with_name(f"{match[1]}-{number:05}-of-{num_parts:05}.gguf")
        for number in range(1, num_parts + 1)
    ]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise CheckpointError(
            f"{path} is one of {num_parts} parts; {len(missing)} are not there:"
            f" {', '.join(missing[:3])}.",
            remedy="Put all parts into one folder.",
        )
    return _joined([file if part == path else GGUFFile(part) for part in paths])


def model_name(path: Path) -> str:
    """Return what the model is called after its file, whatever part that is."""
    match = _PART.fullmatch(path.name)
    return match[1] if match else path.stem


def _joined(parts: list[GGUFFile]) -> GGUFFile:
    whole = parts[0]
    for number, part in enumerate(parts):
        says = (part.metadata.get("split.no"), part.metadata.get("split.count"))
        if says != (number, len(parts)):
            raise CheckpointError(
                f"{part.path} says that it is part {says[0]} of {says[1]}, counted from 0; its name"
                f" makes it {number} of {len(parts)}.",
                remedy="Download the parts again.",
            )
        if part is whole:
            continue
        twice = next((name for name in part.tensors if name in whole.tensors), None)
        if twice is not None:
            raise CheckpointError(
                f"{part.path} has {twice}, which a part before it has as well.",
                remedy="Download the parts again.",
            )
        whole.tensors.update(part.tensors)
    expected = whole.metadata.get("split.tensors.count", len(whole.tensors))
    if expected != len(whole.tensors):
        raise CheckpointError(
            f"{whole.path} says that all parts have {expected} tensors; they have"
            f" {len(whole.tensors)}.",
            remedy="Download the parts again.",
        )
    return whole
