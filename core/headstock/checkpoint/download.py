"""Gets a model onto this machine. Reads nothing of it, and imports little."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import TYPE_CHECKING

from headstock.checkpoint.catalog import CATALOG
from headstock.errors import CheckpointError

if TYPE_CHECKING:
    from headstock.checkpoint.files import Progress

HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
"""Paths such as ./model are none; the hub refuses some that are, with its own reason."""
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
SMALL_TORCH_FILES = ("*_linear.pt", "*_Dense/pytorch_model.bin")
"""Products beside an embedding model, which are read whether the model is in safetensors or not."""
TORCH_WEIGHTS = ("pytorch_model*.bin",)
"""Fetched where there are no safetensors: most models have the same weights in both."""


def fetch(model: str, revision: str | None = None, progress: Progress | None = None) -> None:
    """Download ``model`` unless it is on this machine, so that resolving it need not.

    Names that are unknown are left as they are.

    Args:
        model: As for :func:`headstock.checkpoint.resolve`.
        revision: Likewise.
        progress: Called with the progress of a download.

    Raises:
        CheckpointError: It cannot be fetched.
    """
    if Path(model).expanduser().exists():
        return
    if model in CATALOG:
        from headstock.checkpoint.pull import ensure

        ensure(model, progress)
    elif is_hub_id(model):
        download(model, revision)


def is_hub_id(model: str) -> bool:
    """Whether ``model`` has the form of a hub id, ``owner/name``."""
    return HUB_ID.fullmatch(model) is not None and Path(model).suffix.lower() != ".gguf"


def download(model: str, revision: str | None) -> Path:
    """Fetch a hub model's folder, or find it in the hub's cache.

    Raises:
        CheckpointError: It cannot be fetched.
    """
    # Its stub leaves the types of user_agent and tqdm_class open.
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        patterns = [*HUB_FILES, *SMALL_TORCH_FILES]
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            patterns += TORCH_WEIGHTS
            folder = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"{model} cannot be written: {error.strerror}.",
                remedy="Free space where the hub's cache is, or set HF_HOME to another folder.",
            ) from error
        raise CheckpointError(
            f"There is no file or folder {model} here, and the hub's model of that name, revision"
            f" {revision or 'main'}, cannot be fetched: {reason}",
            remedy="Check the path, or the id and the network; or download the model and give its"
            " folder.",
        ) from error
