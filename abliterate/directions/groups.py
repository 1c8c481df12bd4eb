"""Group prompts by role, language and keep set, and collect their activations with a progress bar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from abliterate.config import CollectConfig
from abliterate.directions.activations import Activations
from abliterate.directions.collect import Group, SetActivations, Watchable, collect
from abliterate.directions.keep import KEEP
from abliterate.model.chat.template import encode, last_tokens
from abliterate.prompts import Prompt, Role, RoleSets
from abliterate.terminal.progress import stage

MIN_PER_LANGUAGE = 16  # a language gets its own direction if each role has this many prompts in it


def activations_of(model: Watchable, sets: RoleSets, positions: int) -> Activations:
    """Statistics of each role's train prompts at the last ``positions`` tokens, and the val vectors that rank the directions."""
    val = sets.played if sets.sets("keep") else ("target", "baseline")
    train = {role: sets.prompts(role, "train") for role in sets.played}
    return collect_roles(model, sets, train, {role: sets.prompts(role, "val") for role in val}, positions)


def collect_roles(
    model: Watchable, sets: RoleSets, train: Mapping[Role, Sequence[Prompt]], val: Mapping[Role, Sequence[Prompt]], positions: int
) -> Activations:
    """Statistics of the ``train`` prompts by role, language and keep set, and the vectors of the ``val`` prompts.

    For val, every position of target and baseline is stored, and only the last position of the other roles, which only scoping uses.
    """
    parts = by_language({role: train[role] for role in ("target", "baseline")})
    asked: dict[str, Group] = {
        role: group_of(model, prompts, parts.get(role, {}) | by_set(sets, role, prompts)) for role, prompts in train.items()
    }
    for role, prompts in val.items():
        own = {f"{part} (val)": chosen for part, chosen in by_set(sets, role, prompts).items()}
        asked[f"{role} (val)"] = group_of(model, prompts, own, positions if role in ("target", "baseline") else 1)
    found = collect_groups(model, asked, positions)
    kept = {name.removesuffix(" (val)"): found.pop(name).vectors for name in list(found) if name.endswith(" (val)")}
    kept.pop("keep", None)  # by set
    categories = tuple(p.category or p.topic or "" for p in train["target"])
    return Activations(found, kept, tuple(range(-1, -positions - 1, -1)), sets.hashes, categories)


def by_set(sets: RoleSets, role: Role, prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """The indices of each keep set's prompts, as ``keep/<set>``; empty for other roles."""
    if role != "keep":
        return {}
    owned = {group.name: frozenset(group.prompts) for group in sets.sets("keep")}
    return {f"{KEEP}{name}": [i for i, p in enumerate(prompts) if p in own] for name, own in owned.items()}


def by_language(prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, dict[str, list[int]]]:
    """By role, the indices of its prompts in each language that every role has (``target@en`` and so on). Empty unless there are several
    such languages."""
    counts = [Counter(p.lang for p in asked) for asked in prompts.values()]
    shared = sorted(lang for lang in counts[0] if all(count[lang] >= MIN_PER_LANGUAGE for count in counts))
    if len(shared) < 2:
        return {}
    return {
        role: {f"{role}@{lang}": [i for i, p in enumerate(asked) if p.lang == lang] for lang in shared} for role, asked in prompts.items()
    }


def positions_of(model: Watchable, config: CollectConfig) -> int:
    """How many last tokens to collect: --positions, else all tokens that the chat template appends, and with keep sets one more, the last
    token of the instruction."""
    return config.positions or last_tokens(model.tokenizer, config)


def group_of(model: Watchable, prompts: Sequence[Prompt], parts: Mapping[str, Sequence[int]], kept: int = 1) -> Group:
    """Encode prompts as a group."""
    return Group(encode(model.tokenizer, [p.text for p in prompts]), parts, kept)


def collect_groups(model: Watchable, groups: Mapping[str, Group], positions: int) -> dict[str, SetActivations]:
    """Activations of groups of prompts, with a progress bar."""
    with stage("activations (prompts)", sum(len(group.prompts) for group in groups.values())) as advance:
        return collect(model, groups, positions, advance)
