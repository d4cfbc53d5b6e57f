"""The parts of `cuda_kernels.py`: one subject each."""
