"""What a model file is written with: layers that know their checkpoint tensors and their split."""
