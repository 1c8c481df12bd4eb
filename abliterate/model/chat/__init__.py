"""Prompts and replies as a model writes them: its chat template, the marks of its thoughts, and the tokens that end a reply."""
