"""The files of a model that say how images and videos become what its encoder takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from headstock.errors import CheckpointError

IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
VIDEO_FILES = ("video_preprocessor_config.json", "processor_config.json")
IMAGE_TOKENS = ("image_token_id", "image_token_index", "media_placeholder_token_id")
"""What configurations call the id that stands for an image."""
Channels = tuple[float, float, float]
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Files:
    """What is known of a model's processor.

    Attributes:
        folder: Where the files lie.
        config: The model's configuration.
        image: Settings of its image processor.
        token_id: Id that stands for an image.
    """

    folder: Path
    config: Settings
    image: Settings
    token_id: int

    @property
    def model_type(self) -> str:
        """What the configuration calls the model."""
        return str(self.config["model_type"])

    @property
    def vision(self) -> Settings:
        """The configuration of its encoder; {}: there is none."""
        return self.config.get("vision_config") or {}

    @property
    def size(self) -> Settings:
        """What images are resized to; {}: the image processor does not say."""
        return self.image.get("size") or {}

    def video(self) -> Settings | None:
        """Return the settings of its video processor; None: it has none."""
        return _read(self.folder, VIDEO_FILES, "video_processor")

    def scales(self, given: Settings | None = None) -> tuple[Channels, Channels]:
        """Return what the pixels of each channel are multiplied by, and what is added then.

        Args:
            given: Settings of a processor; None: those of the image processor.

        Raises:
            CheckpointError: A mean or a deviation is not three numbers, or neither counts.
        """
        given = self.image if given is None else given
        if given.get("do_normalize") is False:
            raise self.wrong("do_normalize is false")
        mean, std = (self.channels(given, name) for name in ("image_mean", "image_std"))
        factor = float(given.get("rescale_factor") or 1 / 255)
        red, green, blue = (factor / s for s in std)
        shifts = [-m / s for m, s in zip(mean, std, strict=True)]
        return (red, green, blue), (shifts[0], shifts[1], shifts[2])

    def channels(self, given: Settings, name: str) -> list[float]:
        """Return a value of each channel.

        Raises:
            CheckpointError: There are not three numbers.
        """
        values = given.get(name) or [0.5, 0.5, 0.5]
        if len(values) != 3 or not all(isinstance(value, int | float) for value in values):
            raise self.wrong(f"{name} is {values!r}")
        return [float(value) for value in values]

    def other(self, name: str) -> Settings:
        """Return what another file has; {}: there is none, or it holds no object."""
        return _read_whole(self.folder, name)

    def id_of(self, text: str) -> int:
        """Return the id of a token that was added to the vocabulary.

        Raises:
            CheckpointError: There is none.
        """
        found = self.added_id(text)
        if found is None:
            problem = f"tokenizer.json has no added token {text!r}, which stands for an image"
            raise self.wrong(problem)
        return found

    def added_id(self, text: str) -> int | None:
        """Return the id of a token that was added to the vocabulary; None: there is none."""
        for token in self.other("tokenizer.json").get("added_tokens") or ():
            if token.get("content") == text:
                return int(token["id"])
        return None

    def added_text(self, token_id: int) -> str | None:
        """Return the text of a token that was added to the vocabulary; None: there is none."""
        for token in self.other("tokenizer.json").get("added_tokens") or ():
            if token.get("id") == token_id:
                return str(token["content"])
        return None

    def wrong(self, problem: str) -> CheckpointError:
        """Return the error for files that ask for what we do not compute."""
        return _wrong(self.folder, problem)


def open_files(config: Settings, folder: Path) -> Files:
    """Return what the files in ``folder`` say.

    Raises:
        CheckpointError: The settings of the image processor are missing, or leave out a step.
    """
    found = [config[key] for key in IMAGE_TOKENS if key in config]
    token_id = found[0] if found else None
    if not isinstance(token_id, int):
        raise _wrong(folder, "config.json has no image_token_id")
    given = _read(folder, IMAGE_FILES, "image_processor")
    if given is None:
        names = " nor ".join(IMAGE_FILES)
        raise _wrong(folder, f"there is neither {names} of an image processor")
    for switch in ("do_resize", "do_rescale", "do_convert_rgb"):
        if given.get(switch) is False:
            raise _wrong(folder, f"{switch} is false")
    return Files(folder, config, given, token_id)


def first_of(given: Any) -> int:
    """Return a side of a square that is given by one side, or both; 0: it is not given."""
    return int(given[0] if isinstance(given, list) else given or 0)


def _read(folder: Path, names: Sequence[str], part: str) -> Settings | None:
    """Return the settings of a processor, from whichever file has them; None: none has."""
    for name in names:
        given = _read_whole(folder, name)
        inner = given if name.startswith(("pre", "video_pre")) else given.get(part)
        if isinstance(inner, dict) and inner:
            return cast("dict[str, Any]", inner)
    return None


def _read_whole(folder: Path, name: str) -> Settings:
    path = folder / name
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _wrong(folder, f"{name} cannot be read") from error
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _wrong(folder: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: {problem}.", remedy="Compare the files with the model's original."
    )
