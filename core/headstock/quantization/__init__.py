"""Canonical weight layouts, and what becomes one."""
