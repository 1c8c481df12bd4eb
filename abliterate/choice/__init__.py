"""Choose one edit: candidates, their scores, the tuner, the search, the Pareto front."""
