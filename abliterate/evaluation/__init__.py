"""Evaluation: generate, judge outcomes, measure drift, count with intervals and paired tests."""
