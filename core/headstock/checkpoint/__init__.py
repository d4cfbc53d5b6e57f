"""The files of a model: where they are, what they hold."""
