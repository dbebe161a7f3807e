"""Modules that keep their weights packed and run them through `soroq.kernels`."""
