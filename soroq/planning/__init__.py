"""What fits where, how fast, and what it costs: arithmetic on shapes, before anything is bought."""
