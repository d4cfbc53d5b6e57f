"""The tests that a backend passes to be called one. Their names are the claims."""

from headstock.config.environment import hold_back_torch_backends

hold_back_torch_backends()  # before any of its tests imports torch
