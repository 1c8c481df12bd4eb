"""Checkpoints on disk: lazy reads, exact edits, atomic writes, proofs, comparisons."""
