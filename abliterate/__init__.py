"""abliterate: find, measure and remove a chosen kind of refusal in open-weight language models."""

__version__ = "0.1.0"
