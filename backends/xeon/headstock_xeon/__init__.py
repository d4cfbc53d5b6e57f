"""The xeon backend."""
