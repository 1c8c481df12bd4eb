"""Verdicts: the outcome of a reply, by rules and learned weights, or by another judge."""
