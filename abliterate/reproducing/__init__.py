"""A run again, from its record alone, and its figures beside those of the first time."""
