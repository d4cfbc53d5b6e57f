"""Attention to a chosen part of what is cached: the choice of tokens, or of blocks of them."""
