"""Processes that share a model."""
