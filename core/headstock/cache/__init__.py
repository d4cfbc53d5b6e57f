"""Which page belongs to whom."""
