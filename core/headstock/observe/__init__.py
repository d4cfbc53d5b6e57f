"""What is measured: log lines and metrics. Fed by others; asks nobody."""
