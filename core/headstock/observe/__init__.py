"""What is measured: log lines and metrics. Others call it; it calls no other room."""
