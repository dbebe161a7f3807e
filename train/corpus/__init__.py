"""From raw text to shards of tokens that training reads."""
