"""Thoughts against answers: does a model that thinks decide to withhold before it answers?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from abliterate.measures.parts.rates import Outcomes
from abliterate.measures.parts.thoughts import Answers, Crossed, ThoughtByAnswer
from abliterate.measures.summary import Judged, with_verdict, withheld
from abliterate.outcomes.records import NOT_JUDGED, OUTCOMES

SHUT = ("empty", "refused")  # verdicts of thoughts that decide against answering


def thought_by_answer(base: Mapping[str, Judged], edited: Mapping[str, Judged] | None) -> dict[str, ThoughtByAnswer] | None:
    """By set, for the base and the edited model, the counts of thought and answer; None if no reply has a thought.

    Sets in which the base model never thinks are left out.
    """
    found = {
        name: ThoughtByAnswer(base=_crossed(judged), edited=None if edited is None else _crossed(edited[name]))
        for name, judged in base.items()
        if any(v.thought is not None for _, v in judged)
    }
    return found or None


def _crossed(judged: Judged) -> Crossed:
    """``counts``: {verdict of the thought, or ``none``: {outcome: k}}. ``shut`` and ``open``: withheld and other answers after a thought
    that is empty or refuses (shut), or after any other thought (open). Replies without a thought, and replies whose thought or answer is
    not judged, are in neither."""
    pairs = Counter((v.thought or "none", v.outcome) for _, v in judged)
    thoughts = sorted({thought for thought, _ in pairs})
    return Crossed(
        counts={thought: Outcomes.of({outcome: pairs[thought, outcome] for outcome in OUTCOMES}) for thought in thoughts},
        shut=_answers([(t, v) for t, v in judged if v.thought in SHUT]),
        open=_answers([(t, v) for t, v in judged if v.thought not in (None, NOT_JUDGED, *SHUT)]),
    )


def _answers(judged: Judged) -> Answers:
    known = with_verdict(judged)
    kept = sum(withheld(v) for _, v in known)
    return Answers(withheld=kept, not_withheld=len(known) - kept)
