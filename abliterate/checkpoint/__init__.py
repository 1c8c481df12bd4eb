"""Checkpoints on disk: shard index, lazy read, exact edit, atomic write, proof."""
