"""Directions: estimators, candidates, their scores by separation and by cause, and the choice among them."""
