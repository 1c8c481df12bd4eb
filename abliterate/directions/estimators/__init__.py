"""Estimators of a refusal direction: pure functions of tensors, one per file, and their table."""
