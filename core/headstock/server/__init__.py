"""HTTP, one router a protocol."""
