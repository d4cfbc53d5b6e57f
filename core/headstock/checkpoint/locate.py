"""Finds the model that an operator named: a folder, a GGUF file, a catalog name or a hub id."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from headstock.checkpoint.catalog import CATALOG
from headstock.checkpoint.files import ModelFiles, Progress
from headstock.checkpoint.folder import PICKLES, open_folder
from headstock.checkpoint.gguf_model import open_gguf
from headstock.errors import CheckpointError, ConfigError

HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")


def resolve(
    model: str,
    revision: str | None = None,
    *,
    needs_weights: bool = True,
    progress: Progress | None = None,
) -> ModelFiles:
    """Return the files of ``model``.

    A path that exists wins over a name. Only a hub id, of the form ``owner/name``, makes this
    reach for the network, and a catalog name on its first use.

    Args:
        model: Hugging Face folder, GGUF file, name that `headstock pull` knows, or hub id.
        revision: Commit, tag or branch, for a hub id.
        needs_weights: False where random weights will do.
        progress: Told of a download.

    Raises:
        CheckpointError: There is no such model, or its files are damaged.
        ConfigError: ``revision`` is given for what has none.
        UnsupportedError: The files hold what we cannot read.
    """
    path = Path(model).expanduser()
    if path.exists():
        _refuse_revision(model, revision)
        return _open_path(path, needs_weights=needs_weights)
    if model in CATALOG:
        from headstock.checkpoint.pull import ensure

        _refuse_revision(model, revision)
        files = _open_path(ensure(model, progress), needs_weights=needs_weights)
        sampling = {**CATALOG[model].sampling, **files.generation_config}
        return replace(files, name=model, generation_config=sampling)
    if HUB_ID.fullmatch(model) and path.suffix.lower() != ".gguf":
        files = open_folder(_download(model, revision), needs_weights=needs_weights)
        return replace(files, name=model)  # its folder is named after the commit
    raise CheckpointError(
        f"Model {model!r} is neither a file, a folder nor a hub id, nor does `headstock pull` know"
        " it.",
        remedy=f"Check the path, or use one of: {', '.join(sorted(CATALOG))}.",
    )


def fetch(model: str, revision: str | None = None, progress: Progress | None = None) -> None:
    """Download ``model`` unless it is on this machine, so that :func:`resolve` need not.

    Names that nobody knows are left to :func:`resolve`, which says so.

    Args:
        model: As for :func:`resolve`.
        revision: Likewise.
        progress: Told of a download.

    Raises:
        CheckpointError: It cannot be fetched.
    """
    path = Path(model).expanduser()
    if path.exists():
        return
    if model in CATALOG:
        from headstock.checkpoint.pull import ensure

        ensure(model, progress)
    elif HUB_ID.fullmatch(model) and path.suffix.lower() != ".gguf":
        _download(model, revision)


def _open_path(path: Path, *, needs_weights: bool) -> ModelFiles:
    if path.is_dir():
        return open_folder(path, needs_weights=needs_weights)
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is read.",
            remedy="Convert it to safetensors: load it with transformers, then save_pretrained.",
        )
    if path.suffix.lower() == ".safetensors":
        raise CheckpointError(
            f"{path} is a weight file without a configuration.",
            remedy="Give the folder that holds it and config.json.",
        )
    return open_gguf(path)


def _refuse_revision(model: str, revision: str | None) -> None:
    if revision is not None:
        raise ConfigError(
            f"--revision {revision} is set, and {model!r} is no hub model.",
            remedy="Drop --revision, or name the model by its hub id.",
        )


def _download(model: str, revision: str | None) -> Path:
    """Fetch a hub model's folder, or find it in the hub's cache."""
    # Its stub leaves the types of user_agent and tqdm_class open.
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{model} at revision {revision or 'main'} cannot be fetched: {reason}",
            remedy="Check the id and the network, or download the model and give its folder.",
        ) from error
