"""Assign prompts to splits: train estimates directions, val chooses the edit, test is only reported on."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from abliterate.errors import InputError
from abliterate.prompts.promptset import SPLITS, Prompt, PromptSet, Split, normalised

TRAIN_SHARE, VAL_SHARE = 0.4, 0.15
FEWEST = 4  # prompts that can be split


def with_splits(prompts: Sequence[Prompt], where: str) -> tuple[Prompt, ...]:
    """Give every prompt a split: the one that the file names, else one by the rank of a hash.

    The hash is of the prompt's topic if it has one, so that a topic is in one split only; else of its id and its twin's id, so that twins
    in two files that name each other get the same split; else of its text. It does not depend on the order of the file. If that makes
    fewer than three groups, every prompt is split by its text. Raises InputError if only some prompts name a split, or if there are too
    few prompts to split.
    """
    named = [p for p in prompts if p.split is not None]
    if named and len(named) != len(prompts):
        raise InputError(f"{where}: {len(prompts) - len(named)} of {len(prompts)} prompts have no split; give every prompt one, or none")
    if named:
        return tuple(prompts)
    if len(prompts) < FEWEST:
        counted = "1 prompt is" if len(prompts) == 1 else f"{len(prompts)} prompts are"
        raise InputError(f"{where}: {counted} too few to split; give at least {FEWEST} (better 100 or more)")
    dealt = _dealt(prompts, _together) or _dealt(prompts, _alone)
    assert dealt is not None, "each prompt is its own group, and there are enough groups"
    return tuple(replace(p, split=split) for p, split in zip(prompts, dealt, strict=True))


def _together(prompt: Prompt) -> str:
    """The key of prompts that must share a split: a topic, or a prompt and its twin."""
    return prompt.topic or ("\n".join(sorted((prompt.id, prompt.pair))) if prompt.pair else _alone(prompt))


def _alone(prompt: Prompt) -> str:
    return normalised(prompt.text)


def _dealt(prompts: Sequence[Prompt], group: Callable[[Prompt], str]) -> list[Split] | None:
    """A split for each prompt, group by group in the order of their hashes, as close to the shares as whole groups allow; None if there
    are fewer groups than splits."""
    sizes = Counter(map(group, prompts))
    ranked = sorted(sizes, key=lambda key: hashlib.sha256(key.encode("utf-8", "replace")).digest())
    if len(ranked) < len(SPLITS):
        return None
    train = max(1, round(TRAIN_SHARE * len(prompts)))
    val = max(1, round(VAL_SHARE * len(prompts)))
    before = [0, *accumulate(sizes[key] for key in ranked)]
    first_val = min(bisect_left(before, train), len(ranked) - 2)
    first_test = min(max(bisect_left(before, train + val), first_val + 1), len(ranked) - 1)
    split_of: dict[str, Split] = {key: "train" if i < first_val else "val" if i < first_test else "test" for i, key in enumerate(ranked)}
    return [split_of[group(p)] for p in prompts]


def check_disjoint(sets: Sequence[PromptSet]) -> None:
    """Raise InputError if a text of train or val is also in test, in any set."""
    seen: dict[str, tuple[str, Prompt]] = {}
    for group in sets:
        for prompt in group:
            if prompt.split != "test":
                seen.setdefault(normalised(prompt.text), (group.name, prompt))
    for group in sets:
        for prompt in group:
            other = seen.get(normalised(prompt.text)) if prompt.split == "test" else None
            if other is not None:
                raise InputError(
                    f"prompt {prompt.id!r} of {group.name} (test) is also {other[1].id!r} of {other[0]} "
                    f"({other[1].split}): a figure on it would prove nothing; remove one of them"
                )


def check_contrast(target: Sequence[PromptSet], baseline: Sequence[PromptSet]) -> None:
    """Raise InputError if target and baseline share prompts: their difference would not be a direction of refusal."""
    target_texts = {normalised(p.text) for group in target for p in group}
    baseline_texts = {normalised(p.text): p for group in baseline for p in group}
    shared = [p for text, p in baseline_texts.items() if text in target_texts]
    if target_texts <= baseline_texts.keys():
        raise InputError("target and baseline are the same prompts: there is no direction between them; give another --baseline")
    if shared:
        raise InputError(
            f"{len(shared)} prompts are in target and in baseline (first: {shared[0].text[:60]!r}); remove them from one of the two"
        )
