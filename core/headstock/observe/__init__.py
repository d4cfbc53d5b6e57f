"""What is measured: logs and metrics."""
