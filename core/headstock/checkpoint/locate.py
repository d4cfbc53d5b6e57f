"""Finds the model that an operator named: a folder, a GGUF file, a catalog name or a hub id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from headstock.checkpoint.catalog import CATALOG
from headstock.checkpoint.download import download, is_hub_id
from headstock.checkpoint.files import ModelFiles, Progress
from headstock.checkpoint.folder import open_folder
from headstock.checkpoint.formats import Formats, OwnReaders
from headstock.checkpoint.gguf_model import open_gguf
from headstock.checkpoint.weight_files import PICKLES
from headstock.errors import CheckpointError, ConfigError


def resolve(
    model: str,
    revision: str | None = None,
    *,
    needs_weights: bool = True,
    progress: Progress | None = None,
    formats: Formats = OwnReaders,
) -> ModelFiles:
    """Return the files of ``model``.

    A path that exists wins over a name. Only a hub id, of the form ``owner/name``, makes this
    reach for the network, and a catalog name on its first use.

    Args:
        model: Hugging Face folder, GGUF file, name that `headstock pull` knows, or hub id.
        revision: Commit, tag or branch, for a hub id.
        needs_weights: False where random weights will do.
        progress: Called with the progress of a download.
        formats: Returns the formats of quantised folders; called where the folder is one.

    Raises:
        CheckpointError: There is no such model, or its files are damaged.
        ConfigError: ``revision`` is given for what has none.
        UnsupportedError: The files hold what we cannot read.
    """
    path = Path(model).expanduser()
    if path.exists():
        _refuse_revision(model, revision)
        return _open_path(path, formats, needs_weights=needs_weights)
    if model in CATALOG:
        from headstock.checkpoint.pull import ensure

        _refuse_revision(model, revision)
        files = _open_path(ensure(model, progress), formats, needs_weights=needs_weights)
        sampling = {**CATALOG[model].sampling, **files.generation_config}
        return replace(files, name=model, generation_config=sampling)
    if is_hub_id(model):
        folder = download(model, revision)
        files = open_folder(folder, needs_weights=needs_weights, formats=formats)
        return replace(files, name=model)  # its folder is named after the commit
    raise CheckpointError(
        f"Model {model!r} is neither a file, a folder nor a hub id, nor does `headstock pull` know"
        " it.",
        remedy=f"Check the path, or use one of: {', '.join(sorted(CATALOG))}.",
    )


def _open_path(path: Path, formats: Formats, *, needs_weights: bool) -> ModelFiles:
    if path.is_dir():
        return open_folder(path, needs_weights=needs_weights, formats=formats)
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{path} is a pickle of weights without a configuration.",
            remedy="Give the folder that holds it, as pytorch_model.bin, and config.json.",
        )
    if path.suffix.lower() == ".json":
        raise CheckpointError(
            f"{path} is a file beside a model's weights, not a model.",
            remedy="Give the folder that holds it.",
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
            f"--revision {revision} is set, and {model!r} is not a hub model.",
            remedy="Drop --revision, or name the model by its hub id.",
        )
