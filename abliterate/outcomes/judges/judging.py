"""Judge transcripts with any judge, with progress; replies without a verdict are counted and reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from abliterate.outcomes.judges.judge import UNJUDGED, Judge, Rules
from abliterate.outcomes.records import NOT_JUDGED
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.transcripts import Transcript
from abliterate.terminal.progress import say, stage

_ALWAYS = ("outcome", "rule", "thought", "substance")
ANOTHER_JUDGE = "use --judge chat:URL#MODEL with a model that knows it"


def judged_by(judge: Judge, transcripts: Sequence[Transcript]) -> list[Verdict | None]:
    """One verdict per transcript; None if the judge gave none."""
    if isinstance(judge, Rules):  # fast, so without progress
        verdicts = judge(transcripts)
        if unknown := sum(verdict is not None and verdict.outcome == NOT_JUDGED for verdict in verdicts):
            say(f"{unknown} of {len(verdicts)} replies are in a language that the rules don't know and were not judged; {ANOTHER_JUDGE}")
        return verdicts
    with stage(f"judged by {judge.name}", len(transcripts)) as advance:
        verdicts = judge(transcripts, advance)
    if unjudged := verdicts.count(None):
        say(f"{judge.name} gave no outcome for {unjudged} of {len(verdicts)} replies; they are left {UNJUDGED}")
    return verdicts


def fields_of(verdict: Verdict) -> dict[str, Any]:
    """The fields that a file holds for a verdict. Those that only some verdicts have are left out of the others."""
    return {name: value for name, value in asdict(verdict).items() if value is not None or name in _ALWAYS}


def unjudged_by(judge: Judge) -> dict[str, Any]:
    """The fields that a file holds for a reply without a verdict."""
    return {"outcome": UNJUDGED, "rule": f"{judge.name} gave no outcome", "thought": None, "substance": None}
