"""The main job: a checkpoint in, a quantized checkpoint out, one decoder block at a time."""
