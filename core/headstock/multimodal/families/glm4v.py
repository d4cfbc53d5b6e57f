"""GLM-4.1V, 4.5V, 4.6V and GLM-OCR: as Qwen2-VL, but bounds are of all pixels that patches have."""

from __future__ import annotations

from headstock.multimodal.families.files import Files
from headstock.multimodal.families.qwen_vl import merged_patches
from headstock.multimodal.family import Family


def read(files: Files) -> Family:
    """Return what is made of images."""
    return merged_patches(files, patch_size=14, video=None, is_counted=True)
