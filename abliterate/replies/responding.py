"""Replies of one model to all prompts, into the run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abliterate.prompts import PromptSet
from abliterate.replies.engine import Engine
from abliterate.replies.transcripts import Transcript, read
from abliterate.runs.folder import RunFolder
from abliterate.terminal.progress import stage


def respond(folder: RunFolder, engine: Callable[[], Engine], groups: Sequence[PromptSet], which: str) -> list[Transcript]:
    """Responses of one model to all prompts; the transcript file grows as they come and is gone on with.

    ``engine`` is called where any is missing; run.json says then what it is.
    """
    path = folder.path / "transcripts" / f"{which}.jsonl"
    path.parent.mkdir(exist_ok=True)
    done = {(t.set, t.id): t for t in read(path)}
    wanted = [(group.name, prompt.id) for group in groups for prompt in group]
    if all(key in done for key in wanted):
        return [done[key] for key in wanted]
    with folder.timed(f"transcripts ({which})"):
        asked = engine()
        folder.note_engine(which, asked.described, begun=bool(done))
        with stage(f"responses of the {which} model", len(wanted)) as advance:
            return asked.answer(groups, path, advance)
