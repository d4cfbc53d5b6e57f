"""Grammars: what an output may look like, checked, compiled aside, and turned into masks of ids.

Knows vocabularies, not tensors and not steps. A provider compiles; it is named by a plugin's
``headstock_register_grammars`` and runs first in a process of its own, under limits.
"""
