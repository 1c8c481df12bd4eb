"""Batched greedy generation that resumes after an interruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from abliterate.compute.passes import Advance, Model, Pass, no_progress
from abliterate.model.chat.template import encode
from abliterate.model.chat.thinking import decode, opens_thought
from abliterate.prompts import PromptSet
from abliterate.replies.settling import Settling
from abliterate.replies.thoughts import answer_start, replies_within
from abliterate.replies.transcripts import Transcript, append, read, rewrite, transcript_of


def generate(
    model: Model,
    sets: Sequence[PromptSet],
    path: Path,
    max_new_tokens: int,
    advance: Advance = no_progress,
    settle: bool = False,
    budget: int | None = None,
) -> list[Transcript]:
    """Replies to every prompt of every set, written to ``path`` segment by segment. ``settle`` stops replies that are clear refusals.

    ``budget``: maximum tokens of a thought; ``max_new_tokens`` then limits the answer alone. Resumes a file begun earlier: its leading
    complete segments are kept and all others generated again, so that the same prompts are computed together and the tokens are the
    same as without the interruption.
    """
    prompts = [(group.name, prompt) for group in sets for prompt in group]
    encoded = encode(model.tokenizer, [p.text for _, p in prompts])
    opened = opens_thought(model.tokenizer)
    texts = {tuple(ids): prompt.text for ids, (_, prompt) in zip(encoded, prompts, strict=True)}
    settled = Settling(model.tokenizer, texts, opened) if settle else None
    done = {(t.set, t.id): t for t in read(path)}
    kept: list[Transcript] = []
    pending: list[list[int]] = []
    for segment in _segments(encoded, model.segment):
        whole = [done.get((prompts[i][0], prompts[i][1].id)) for i in segment]
        if not pending and all(t is not None for t in whole):
            kept += [t for t in whole if t is not None]
        else:
            pending.append(segment)
    rewrite(path, kept)
    advance(len(kept))
    for segment in pending:
        replies: dict[int, list[int]] = {}
        asked = Pass([encoded[i] for i in segment], settled=settled)
        if budget is None:
            for _, places, found in model.replies([asked], max_new_tokens, advance):
                replies |= {segment[place]: reply for place, reply in zip(places, found, strict=True)}
        else:
            within = replies_within(model, asked.sequences, budget, max_new_tokens, advance)
            replies = {segment[place]: reply for place, reply in within}
        longest = min(max_new_tokens, model.longest or max_new_tokens)
        made = []
        for i in segment:
            before = 0 if budget is None else answer_start(model.tokenizer, replies[i], opened) or 0
            cut = len(replies[i]) - before >= longest  # a thought within a budget doesn't count
            made.append(transcript_of(*prompts[i], decode(model.tokenizer, replies[i]), len(replies[i]), opened, cut))
        append(path, made)
        kept += made
    order = {(name, prompt.id): i for i, (name, prompt) in enumerate(prompts)}
    return sorted(kept, key=lambda t: order[t.set, t.id])


def _segments(encoded: Sequence[Sequence[int]], size: int | None) -> list[list[int]]:
    """Indices of the prompts that are computed together, shortest first; they depend only on the lengths."""
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), i))
    return [order[start : start + size] for start in range(0, len(order), size)] if size else [order]
