"""A model that is larger than memory: read block by block."""
