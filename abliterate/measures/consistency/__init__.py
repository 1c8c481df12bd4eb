"""Consistency of sampled replies: which claims of an answer they support, whether that separates true claims from made-up ones, and what
follows for the answer's worth."""
