"""Kernels: what the compiler made of them, and how fast they run."""
