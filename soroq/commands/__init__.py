"""What the commands of `soroq.cli` do; each module is imported when its command runs."""
