"""Chunks to tensors to tokens."""
