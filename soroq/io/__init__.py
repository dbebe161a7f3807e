"""Reading checkpoints lazily, writing them whole or not at all."""
