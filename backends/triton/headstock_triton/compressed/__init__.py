"""Attention to a window of tokens and to entries that stand for those before, and the entries."""
