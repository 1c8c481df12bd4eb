"""A model held whole in memory."""
