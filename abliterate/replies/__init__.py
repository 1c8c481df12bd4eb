"""Transcripts: what writes the replies of a model, and the files that they are kept in."""
