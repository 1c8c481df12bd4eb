"""Collect activation statistics alone."""

from __future__ import annotations

from pathlib import Path

from abliterate.config import CollectConfig
from abliterate.directions.activations import save_activations
from abliterate.directions.groups import collect_roles, positions_of
from abliterate.directions.keys import GroupKey
from abliterate.files import check_new
from abliterate.prompts import Role, RoleSets
from abliterate.prompts.roles import ROLES
from abliterate.runs.record import open_model


def collect(config: CollectConfig, out: Path) -> str:
    """Write the activations file ``out`` of the target and baseline prompts; with keep sets, also of these and of harmless prompts.

    A set that names splits contributes its train split. If all sets do, the file also holds val vectors, by which directions are judged.
    """
    check_new(out)
    _, session = open_model(config, out.parent)
    harmless = config.harmless if config.keep or "harmless" in config.model_fields_set else None
    sets = RoleSets(config.target, config.baseline, config.keep, harmless, config.limit)
    roles: tuple[Role, ...] = tuple(role for role in ROLES if sets.sets(role))
    split = all(len(group.of("val")) and group.own_splits for role in roles for group in sets.sets(role))
    val = {role: sets.prompts(role, "val") for role in roles if split}
    train = {role: sets.estimating(role) for role in roles}
    session.check_prompts({role: [*train[role], *val.get(role, [])] for role in roles})
    found = collect_roles(session.model, sets, train, val, positions_of(session.model, config))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    save_activations(found, partial)
    partial.replace(out)
    return f"{out}: " + ", ".join(f"{role} {len(found.train[GroupKey(role)].vectors)} prompts" for role in roles)
