"""Reads what a model makes of images and videos off the files beside its weights.

One file a family, by the name of its model; ``registry`` says which reads what.
"""

from headstock.multimodal.families.registry import find_family

__all__ = ["find_family"]
