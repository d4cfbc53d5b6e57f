"""The composition root."""

from headstock.config.environment import hold_back_torch_backends

hold_back_torch_backends()  # before any of its modules imports torch
