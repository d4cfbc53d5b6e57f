"""Units of what is shown."""

GIB = 1 << 30
"""Bytes."""
