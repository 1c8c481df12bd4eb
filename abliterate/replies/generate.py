"""Batched generation that resumes after an interruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from abliterate.compute.passes import Advance, Model, Pass, no_progress
from abliterate.model.chat.template import encode
from abliterate.model.chat.thinking import decode, opens_thought
from abliterate.prompts import PromptSet
from abliterate.replies.samples import GREEDY, Asked, Sampling
from abliterate.replies.settling import Settling
from abliterate.replies.thoughts import answer_start, replies_within
from abliterate.replies.transcripts import Transcript, append, in_order, read, rewrite, transcript_of


def generate(
    model: Model,
    sets: Sequence[PromptSet],
    path: Path,
    max_new_tokens: int,
    advance: Advance = no_progress,
    settle: bool = False,
    budget: int | None = None,
    sampling: Sampling = GREEDY,
) -> list[Transcript]:
    """Replies to every prompt of every set, written to ``path`` segment by segment. ``settle`` stops replies that are clear refusals.

    ``budget``: maximum tokens of a thought; ``max_new_tokens`` then limits the answer alone. Resumes a file begun earlier: its leading
    complete segments are kept and all others generated again, so that the same prompts are computed together and the tokens are the
    same as without the interruption. Sampled replies come last and in segments of their own, so greedy ones are the same without them.
    """
    asked = sampling.asked(sets)
    encoded = encode(model.tokenizer, [one.prompt.text for one in asked])
    opened = opens_thought(model.tokenizer)
    texts = {tuple(ids): one.prompt.text for ids, one in zip(encoded, asked, strict=True)}
    settled = Settling(model.tokenizer, texts, opened) if settle else None
    kept, pending = _kept(read(path), asked, _segments(encoded, asked, model.segment))
    rewrite(path, kept)
    advance(len(kept))
    for segment in pending:
        draws = [sampling.draw(asked[i]) for i in segment] if asked[segment[0]].sample else None
        replies = dict[int, list[int]]()
        wanted = Pass([encoded[i] for i in segment], settled=settled, draws=draws)
        if budget is None:
            for _, places, found in model.replies([wanted], max_new_tokens, advance):
                replies |= {segment[place]: reply for place, reply in zip(places, found, strict=True)}
        else:
            within = replies_within(model, wanted.sequences, budget, max_new_tokens, advance, draws)
            replies = {segment[place]: reply for place, reply in within}
        longest = min(max_new_tokens, model.longest or max_new_tokens)
        made = []
        for i in segment:
            before = 0 if budget is None else answer_start(model.tokenizer, replies[i], opened) or 0
            cut = len(replies[i]) - before >= longest  # a thought within a budget doesn't count
            made.append(transcript_of(asked[i], decode(model.tokenizer, replies[i]), len(replies[i]), opened, cut))
        append(path, made)
        kept += made
    return in_order(kept, asked)


def _kept(
    found: Sequence[Transcript], asked: Sequence[Asked], segments: Sequence[list[int]]
) -> tuple[list[Transcript], Sequence[list[int]]]:
    """The replies of the leading segments of which all are there, and the segments after them."""
    done = {t.key: t for t in found}
    kept = list[Transcript]()
    for number, segment in enumerate(segments):
        whole = [done.get(asked[i].key) for i in segment]
        if any(t is None for t in whole):
            return kept, segments[number:]
        kept += [t for t in whole if t is not None]
    return kept, []


def _segments(encoded: Sequence[Sequence[int]], asked: Sequence[Asked], size: int | None) -> list[list[int]]:
    """Indices of the replies that are computed together, greedy ones before sampled ones, shortest prompts first; they depend only on the
    lengths."""
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), i))
    kinds = ([i for i in order if not asked[i].sample], [i for i in order if asked[i].sample])
    return [kind[start : start + (size or len(kind))] for kind in kinds for start in range(0, len(kind), size or len(kind) or 1)]
