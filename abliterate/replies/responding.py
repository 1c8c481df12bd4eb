"""Replies of one model to all prompts, stored in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abliterate.prompts import PromptSet
from abliterate.replies.engine import Engine
from abliterate.replies.samples import GREEDY, Sampling
from abliterate.replies.transcripts import Transcript, read
from abliterate.runs.folder import RunFolder
from abliterate.terminal.progress import stage


def respond(
    folder: RunFolder, engine: Callable[[], Engine], groups: Sequence[PromptSet], which: str, sampling: Sampling = GREEDY
) -> list[Transcript]:
    """Replies of one model to all prompts, and the sampled ones after the greedy ones. Each is appended to the transcript file, and a file
    begun earlier is resumed.

    ``engine`` is called only if replies are missing; run.json then records it.
    """
    path = folder.path / "transcripts" / f"{which}.jsonl"
    path.parent.mkdir(exist_ok=True)
    done = {t.key: t for t in read(path)}
    wanted = [asked.key for asked in sampling.asked(groups)]
    if all(key in done for key in wanted):
        return [done[key] for key in wanted]
    with folder.timed(f"transcripts ({which})"):
        asked = engine()
        folder.note_engine(which, asked.described, begun=bool(done))
        with stage(f"replies of the {which} model", len(wanted)) as advance:
            return asked.answer(groups, path, advance)
