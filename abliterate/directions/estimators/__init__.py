"""Estimators of a refusal direction: pure functions of tensors, one a file, and the table of them."""
