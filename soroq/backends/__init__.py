"""Other quantizers, run with soroq's calibration and words; their results as soroq checkpoints."""
