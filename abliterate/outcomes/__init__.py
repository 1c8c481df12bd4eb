"""Verdicts: what a reply is, by rules and learned weights, or by another judge."""
