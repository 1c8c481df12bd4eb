"""Judge stored transcripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from abliterate.config import JudgeConfig
from abliterate.outcomes.judges.judging import fields_of, judged_by, unjudged_by
from abliterate.outcomes.judges.named import judge_of
from abliterate.replies.transcripts import line_of, read_rows


def score(file: Path, config: JudgeConfig) -> Iterator[str]:
    """Each line of a transcript file with its outcome, thought, substance and rule added."""
    judge, rows = judge_of(config), list(read_rows(file))
    verdicts = judged_by(judge, [transcript for _, transcript in rows])
    for (row, _), verdict in zip(rows, verdicts, strict=True):
        yield line_of({**row, **(unjudged_by(judge) if verdict is None else fields_of(verdict))})
