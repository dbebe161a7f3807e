"""Quantization algorithms: pure functions on a weight and its statistics, one file each."""
