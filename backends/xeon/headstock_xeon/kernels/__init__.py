"""The ops that have native kernels, one file a subject."""
