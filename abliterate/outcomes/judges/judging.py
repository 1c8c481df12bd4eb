"""Transcripts and their verdicts by any judge, with progress; what it could not judge is counted and said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from abliterate.outcomes.judges.judge import UNJUDGED, Judge, Rules
from abliterate.outcomes.verdict import NOT_JUDGED, Verdict
from abliterate.replies.transcripts import Transcript
from abliterate.terminal.progress import say, stage

ANOTHER_JUDGE = "--judge chat:URL#MODEL asks a model that knows it"


def judged_by(judge: Judge, transcripts: Sequence[Transcript]) -> list[Verdict | None]:
    """One verdict a transcript, None where the judge gave none."""
    if isinstance(judge, Rules):  # at once
        verdicts = judge(transcripts)
        if unknown := sum(verdict is not None and verdict.outcome == NOT_JUDGED for verdict in verdicts):
            say(f"{unknown} of {len(verdicts)} replies are in a language that the rules don't know, and not judged; {ANOTHER_JUDGE}")
        return verdicts
    with stage(f"judged by {judge.name}", len(transcripts)) as advance:
        verdicts = judge(transcripts, advance)
    if unjudged := verdicts.count(None):
        say(f"{judge.name} gave no outcome for {unjudged} of {len(verdicts)} replies; they are left {UNJUDGED}")
    return verdicts


def unjudged_by(judge: Judge) -> dict[str, Any]:
    """What a file says of a response in place of its verdict."""
    return {"outcome": UNJUDGED, "rule": f"{judge.name} gave no outcome", "thought": None, "substance": None}
