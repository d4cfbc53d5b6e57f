"""The tpu backend."""
