"""Benchmarks: items from files, prompts, scores of choices and of free answers."""
