"""Which weight gets which canonical layout, and how it gets there."""
