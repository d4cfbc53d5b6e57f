"""What the reliability benchmarks share."""
