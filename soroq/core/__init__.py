"""Types that every other part of soroq stands on; imports nothing else of soroq."""
