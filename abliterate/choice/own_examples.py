"""The examples of a split: the unedited model's own replies, and which target prompts it withholds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from abliterate.choice.tuning.examples import Examples, examples_of, examples_work
from abliterate.choice.tuning.probed import heard, save_replies
from abliterate.choice.tuning.replies import distinct, outcome_of, short_replies, withholds
from abliterate.compute.passes import Model, no_progress
from abliterate.errors import InputError
from abliterate.prompts import Prompt, Role, RoleSets
from abliterate.prompts.promptset import Split
from abliterate.runs.resume import ResumeStore
from abliterate.terminal.progress import stage

Prompts = Mapping[Role, Sequence[Prompt]]


def prompts_of(sets: RoleSets, split: Split) -> Prompts:
    return {role: sets.prompts(role, split) for role in sets.played}


def own_examples(model: Model, sets: RoleSets, split: Split, store: ResumeStore) -> Examples:
    """The examples of a split. Reuses replies and predictions that the probe stored. Raises InputError if no target prompt is withheld."""
    prompts = prompts_of(sets, split)
    asked = distinct(prompts)
    replies, predicted = heard(store, split)
    missing = {role: each for role, each in asked.items() if role not in replies}
    work = examples_work(prompts, replies, predicted)
    what = "the model's own short replies" if missing else "predictions along short replies"
    with stage(f"{what} ({split})", work) if work else nullcontext(no_progress) as advance:
        if missing:
            replies |= short_replies(model, missing, advance)
            save_replies(store, split, replies)
        _check_withheld(model, sets, split, prompts["target"], replies["target"])
        return examples_of(model, prompts, advance, replies, predicted, measured=split == "val")


def _check_withheld(model: Model, sets: RoleSets, split: Split, target: Sequence[Prompt], replies: Sequence[Sequence[int]]) -> None:
    """Raises InputError if no reply withholds, because the edit would then suppress the openings of answers."""
    outcomes = [outcome_of(model.tokenizer, prompt, reply) for prompt, reply in zip(target, replies, strict=True)]
    if any(map(withholds, outcomes)):
        return
    names = ", ".join(group.name for group in sets.sets("target"))
    found = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in Counter(outcomes).most_common())
    raise InputError(
        f"--target {names}: the model withholds none of its {len(target)} {split} prompts (short replies: {found}), so there is nothing to "
        "remove; run audit on the model first, then choose a target that it withholds"
    )


def replies_of(examples: Examples) -> list[Sequence[Sequence[int]]]:
    """The token ids that the examples consist of: target prompts, openings, and the replies that should stay."""
    return [examples.target.prompts, examples.target.openings, *(stay.asked.continuations for stay in examples.stays.values())]
