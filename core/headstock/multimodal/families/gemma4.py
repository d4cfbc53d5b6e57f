"""Gemma 4: an image becomes as many tokens as there may be, in its aspect."""

from __future__ import annotations

from headstock.multimodal.families.files import Files
from headstock.multimodal.family import Family, Written


def read(files: Files) -> Family:
    """Return what is made of images. Pixels go from -1 to 1, as the encoder itself brings them.

    Raises:
        CheckpointError: The processor's patches are not the encoder's, or it normalises pixels.
    """
    given, config = files.image, files.config
    if given.get("do_normalize"):
        raise files.wrong("do_normalize is true, and the encoder takes pixels as they are")
    sizes = {"patch_size": 16, "pooling_kernel_size": 3}
    for key, usual in sizes.items():
        mine, its = (int(where.get(key) or usual) for where in (given, files.vision))
        if mine != its:
            raise files.wrong(f"{key} is {mine}; the encoder's is {its}")
        sizes[key] = its
    patch_size, merge = sizes["patch_size"], sizes["pooling_kernel_size"]
    num_tokens = int(given.get("max_soft_tokens") or 280)
    factor = 2 * float(given.get("rescale_factor") or 1 / 255)
    begin_id = int(config.get("boi_token_id") or 255_999)
    end_id = int(config.get("eoi_token_id") or 258_882)
    return Family(
        token_id=files.token_id,
        patch_size=patch_size,
        frames=1,
        merge=merge,
        min_pixels=0,
        max_pixels=num_tokens * (merge * patch_size) ** 2,
        resample=int(given.get("resample") or 3),
        scale=(factor, factor, factor),
        shift=(-1.0, -1.0, -1.0),
        is_filled=True,
        written=Written(files.token_id, (begin_id, files.token_id, end_id)),
    )
