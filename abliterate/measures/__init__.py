"""Measurements on replies and predictions: rates with intervals, paired tests, drift, recovery, controls."""
