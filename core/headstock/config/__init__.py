"""What is set: typed sections, read once at the edge."""
