"""Wrong backends, each a certified one with one thing changed, to see that the kit catches it.

The certified one is ``examples/backend_full`` with the reference under its own name for every other
op, so that each op of the kit can be got wrong. ``headstock_mutants.made:NAME`` is a plugin.
"""
