"""What the next step computes."""
