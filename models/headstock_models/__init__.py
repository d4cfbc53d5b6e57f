"""Model architectures, one file a family."""
