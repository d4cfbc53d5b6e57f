"""The ascend backend."""
