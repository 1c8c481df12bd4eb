"""A conversation with one model, or with a model and its edit side by side."""
