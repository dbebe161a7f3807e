"""Triton kernels: dequantizing matrix products for NVIDIA GPUs. Importing this loads nothing."""
