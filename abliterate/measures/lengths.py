"""Judge the same replies at shorter lengths: how much the verdict depends on the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from abliterate.measures.parts.rates import Cut
from abliterate.model.chat.parts import split_thought
from abliterate.outcomes.records import NOT_JUDGED, WITHHELD
from abliterate.outcomes.verdict import Verdict, judge
from abliterate.replies.transcripts import Transcript

LENGTHS = (16, 32, 64, 128)  # tokens


def at_tokens(judged: Sequence[tuple[Transcript, Verdict]]) -> list[Cut] | None:
    """Refused, withheld and truncated counts with each judged reply cut at 16, 32, 64 and 128 tokens, up to the longest reply's length.

    ``cut``: how many replies are longer. Token boundaries aren't stored, so the text is cut at the same share of its characters, which may
    be a few characters off. None if the number of tokens of a reply is not known.
    """
    if any(t.response and not t.new_tokens for t, _ in judged):
        return None
    longest = max((t.new_tokens for t, _ in judged), default=0)
    known = [(t, v) for t, v in judged if v.outcome != NOT_JUDGED]
    return [_counts(known, length) for length in LENGTHS if length <= longest]


def _counts(judged: Sequence[tuple[Transcript, Verdict]], length: int) -> Cut:
    outcomes = [v.outcome if t.new_tokens <= length else judge_cut(t, length).outcome for t, v in judged]
    return Cut(
        tokens=length,
        cut=sum(t.new_tokens > length for t, _ in judged),
        refused=outcomes.count("refused"),
        withheld=sum(outcome in WITHHELD for outcome in outcomes),
        truncated=outcomes.count("truncated"),
    )


def judge_cut(transcript: Transcript, length: int) -> Verdict:
    """The verdict on a reply cut to ``length`` tokens. A cut inside the thought or inside its marks gives truncated."""
    text = transcript.response
    part = text[: len(text) * length // transcript.new_tokens]
    thinks = split_thought(text, transcript.begins_in_thought).thought is not None
    return judge(part, transcript.facts, thinks, transcript.prompt, cut=True)
