"""The choice of one edit: candidates, their scores, the tuner, the search, the front."""
