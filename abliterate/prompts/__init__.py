"""Prompt sets: load, split, pair, hash. The bundled sets are in the top-level folder ``prompts``."""

from abliterate.prompts.promptset import Prompt, PromptSet, Split
from abliterate.prompts.read import load_asked, load_set
from abliterate.prompts.roles import Role, RoleSets

__all__ = ["Prompt", "PromptSet", "Role", "RoleSets", "Split", "load_asked", "load_set"]
