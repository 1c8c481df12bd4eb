"""Judges of outcomes: the rules, a classifier, a chat model. Each turns transcripts into verdicts."""
