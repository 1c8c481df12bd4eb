"""The roles of prompt sets in a run: target, baseline, keep, harmless."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Literal

from abliterate.errors import InputError
from abliterate.prompts.promptset import SPLITS, Prompt, PromptSet, PromptsUsed, Split
from abliterate.prompts.read import TWINS, load_set
from abliterate.prompts.split import check_contrast, check_disjoint

Role = Literal["target", "baseline", "keep", "harmless"]
ROLES: tuple[Role, ...] = ("target", "baseline", "keep", "harmless")


def default_baseline(target: Sequence[str]) -> tuple[str, ...]:
    """The twins of bundled target sets; ``harmless`` for any other set."""
    return tuple(dict.fromkeys(TWINS.get(name, "harmless") for name in target))


class RoleSets:
    """The prompt sets of a run by role. ``limit``: maximum prompts per set in train and in test; a third of it in val.

    Raises InputError if sets overlap so that a figure would be meaningless: target with baseline, or train with test.
    """

    def __init__(
        self,
        target: Sequence[str],
        baseline: Sequence[str] = (),
        keep: Sequence[str] = (),
        harmless: str | None = None,
        limit: int | None = None,
    ) -> None:
        self.limit = limit
        self._whole: dict[str, str] | None = None
        self._by_role: dict[Role, tuple[PromptSet, ...]] = {
            "target": tuple(map(load_set, target)),
            "baseline": tuple(map(load_set, baseline or default_baseline(target))),
            "keep": tuple(map(load_set, keep)),
        }
        given = [group for groups in self._by_role.values() for group in groups]
        names = [group.name for group in given]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            self._say_twice(twice[0])
        ordinary = [] if harmless is None else [load_set(harmless)]
        self._by_role["harmless"] = tuple(next((g for g in given if g == group), group) for group in ordinary)
        check_contrast(self._by_role["target"], self._by_role["baseline"])
        check_disjoint(self.all)

    def _say_twice(self, name: str) -> None:
        contrasted = {g.name for g in self._by_role["target"]} & {g.name for g in self._by_role["baseline"]}
        if contrasted:
            check_contrast(self._by_role["target"], self._by_role["baseline"])
        raise InputError(f"the set {name!r} is given twice (as target, baseline or keep); give each once, under its own file name")

    @property
    def all(self) -> list[PromptSet]:
        """Every set once, in the order of the report. Raises InputError if two different sets have the same name."""
        unique = list({id(g): g for role in ROLES for g in self._by_role[role]}.values())
        names = [g.name for g in unique]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"two different sets are called {twice[0]!r}; rename your file")
        return unique

    @property
    def roles(self) -> dict[str, Role]:
        """Role by set name; a set with two roles (baseline and harmless) has the first."""
        roles: dict[str, Role] = {}
        for role in ROLES:
            for group in self._by_role[role]:
                roles.setdefault(group.name, role)
        return roles

    def sets(self, role: Role) -> tuple[PromptSet, ...]:
        """The sets of a role."""
        return self._by_role[role]

    @property
    def played(self) -> tuple[Role, ...]:
        """The roles that have a set, with keep last."""
        return tuple(role for role in ("target", "baseline", "harmless", "keep") if self._by_role[role])

    def prompts(self, role: Role, split: Split) -> list[Prompt]:
        """The prompts of a role in a split, from all its sets. Raises InputError if a set has none there."""
        limit = self.limit if split != "val" or self.limit is None else math.ceil(self.limit / 3)
        chosen: list[Prompt] = []
        for group in self._by_role[role]:
            found = group.of(split, limit)
            if not len(found):
                raise InputError(f"{group.name}: no prompts in the split {split!r}; a {role} set needs train, val and test")
            chosen += found
        return chosen

    def check_splits(self) -> None:
        """Raise InputError if a set has no prompts in one of the splits."""
        for role in self.played:
            for split in SPLITS:
                self.prompts(role, split)

    def estimating(self, role: Role) -> list[Prompt]:
        """The prompts for activation statistics alone: train if a set names its splits, else the whole set."""
        return [p for g in self._by_role[role] for p in (g.of("train", self.limit) if g.own_splits else g.first(self.limit))]

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of every set by name; always of the whole set, even if its test prompts are left out."""
        return self._whole if self._whole is not None else {g.name: g.sha256 for g in self.all}

    def without_test(self) -> RoleSets:
        """The same sets without their test prompts, for every stage before the final test."""
        known = copy(self)
        known._whole = self.hashes
        known._by_role = {role: tuple(map(_untested, groups)) for role, groups in self._by_role.items()}
        return known

    def test_sets(self) -> list[PromptSet]:
        """The test prompts of every set."""
        return [group.of("test", self.limit) for group in self.all]

    def described(self) -> dict[str, PromptsUsed]:
        """Role, hash and size of every set, by its name."""
        return {g.name: g.used_as(self.roles[g.name]) for g in self.all}


def _untested(group: PromptSet) -> PromptSet:
    return replace(group, prompts=tuple(p for p in group if p.split != "test"))
