"""Prompt sets: load, split, pair, hash. The bundled sets lie in the top-level folder ``prompts``."""

from abliterate.prompts.promptset import Prompt, PromptSet, Split
from abliterate.prompts.read import load_set

__all__ = ["Prompt", "PromptSet", "Split", "load_set"]
