"""The prompts that an audit or a comparison asks."""

from __future__ import annotations

from abliterate.config import AuditConfig
from abliterate.errors import InputError
from abliterate.prompts.promptset import PromptSet
from abliterate.prompts.read import load_asked


def asked_sets(config: AuditConfig) -> list[PromptSet]:
    """The prompts to ask, set by set. Raises InputError if two sets have the same name, or if a set has no prompts to ask."""
    groups = [_asked(group, config) for group in whole_sets(config)]
    if len({g.name for g in groups}) != len(groups):
        raise InputError("a prompt set is given twice; give each once, under its own file name")
    return groups


def whole_sets(config: AuditConfig) -> list[PromptSet]:
    """All prompts of the sets that are asked, of every split."""
    return [load_asked(name) for name in config.prompts]


def _asked(group: PromptSet, config: AuditConfig) -> PromptSet:
    """The prompts to ask: those of the chosen split, or all if the file names no splits."""
    if config.split == "all" or not group.own_splits:
        return group.first(config.limit)
    found = group.of(config.split, config.limit)
    if not len(found):
        raise InputError(f"{group.name}: no prompts in the split {config.split!r}; use --split all")
    return found
