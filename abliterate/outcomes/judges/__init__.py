"""Judges of outcomes: the rules, a classifier, a chat model. Each gives the verdicts of transcripts."""
