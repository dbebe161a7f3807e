"""On-disk formats: the only place that knows the names tensors have in a file."""
