"""Group prompts by role, language and keep set, and collect their activations with a progress bar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from abliterate.config import CollectConfig
from abliterate.directions.activations import Activations
from abliterate.directions.collect import Group, SetActivations, Watchable, collect
from abliterate.directions.keys import GroupKey
from abliterate.model.chat.template import encode, last_tokens
from abliterate.prompts import Prompt, Role, RoleSets
from abliterate.prompts.promptset import Split
from abliterate.terminal.progress import stage

MIN_PER_LANGUAGE = 16  # a language gets its own direction if each role has this many prompts in it

Part = tuple[Split, GroupKey]  # prompts that are collected


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
    asked: dict[Part, Group[Part]] = {}
    for role, prompts in train.items():
        own = parts.get(role, {}) | by_set(sets, role, prompts)
        asked["train", GroupKey(role)] = group_of(model, prompts, _in("train", own))
    for role, prompts in val.items():
        kept = positions if role in ("target", "baseline") else 1
        asked["val", GroupKey(role)] = group_of(model, prompts, _in("val", by_set(sets, role, prompts)), kept)
    found = collect_groups(model, asked, positions)
    statistics = {key: each for (split, key), each in found.items() if split == "train"}
    ranking = {key: each.vectors for (split, key), each in found.items() if split == "val" and key != GroupKey("keep")}  # keep: by set
    categories = tuple(p.category or p.topic or "" for p in train["target"])
    return Activations(statistics, ranking, tuple(range(-1, -positions - 1, -1)), sets.hashes, categories)


def _in(split: Split, parts: Mapping[GroupKey, Sequence[int]]) -> dict[Part, Sequence[int]]:
    return {(split, key): chosen for key, chosen in parts.items()}


def by_set(sets: RoleSets, role: Role, prompts: Sequence[Prompt]) -> dict[GroupKey, list[int]]:
    """The indices of each keep set's prompts; empty for other roles."""
    if role != "keep":
        return {}
    owned = {group.name: frozenset(group.prompts) for group in sets.sets("keep")}
    return {GroupKey("keep", keep_set=name): [i for i, p in enumerate(prompts) if p in own] for name, own in owned.items()}


def by_language(prompts: Mapping[Role, Sequence[Prompt]]) -> dict[Role, dict[GroupKey, list[int]]]:
    """By role, the indices of its prompts in each language that every role has. Empty unless there are several such languages."""
    counts = [Counter(p.lang for p in asked) for asked in prompts.values()]
    shared = sorted(lang for lang in counts[0] if all(count[lang] >= MIN_PER_LANGUAGE for count in counts))
    if len(shared) < 2:
        return {}
    return {
        role: {GroupKey(role, lang): [i for i, p in enumerate(asked) if p.lang == lang] for lang in shared}
        for role, asked in prompts.items()
    }


def positions_of(model: Watchable, config: CollectConfig) -> int:
    """How many last tokens to collect: --positions, else all tokens that the chat template appends, and with keep sets one more, the last
    token of the instruction."""
    return config.positions or last_tokens(model.tokenizer, config)


def group_of(model: Watchable, prompts: Sequence[Prompt], parts: Mapping[Part, Sequence[int]], kept: int = 1) -> Group[Part]:
    """Encode prompts as a group."""
    return Group(encode(model.tokenizer, [p.text for p in prompts]), parts, kept)


def collect_groups(model: Watchable, groups: Mapping[Part, Group[Part]], positions: int) -> dict[Part, SetActivations]:
    """Activations of groups of prompts, with a progress bar."""
    with stage("activations (prompts)", sum(len(group.prompts) for group in groups.values())) as advance:
        return collect(model, groups, positions, advance)
