"""A GPU in use through PyTorch's ``torch.cuda``, which drives NVIDIA's and AMD's alike."""
