"""Activations: the residual stream at the last tokens of the generation prompt, and its statistics over prompt sets."""
