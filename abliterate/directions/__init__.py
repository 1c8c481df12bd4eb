"""Directions: collect activations, estimate directions, scope them, and score how well they separate."""
