"""Every message between processes: plain integers and text, no tensors, never pickle."""
