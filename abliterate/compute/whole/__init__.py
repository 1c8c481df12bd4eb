"""A model that is in memory whole."""
