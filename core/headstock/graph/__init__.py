"""What a model file is written with."""
