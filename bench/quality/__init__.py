"""How good a model still is: perplexity and divergence from its original."""
