"""The tests that a backend passes to be called one. Their names are the claims."""
