"""Transcript files: one JSON object per line. An incomplete last line, left by an interruption, is ignored and removed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from abliterate.errors import InputError
from abliterate.files import no_link, whole_file
from abliterate.outcomes.verdict import Verdict, judge
from abliterate.prompts.languages.record import DEFAULT
from abliterate.prompts.lines import json_rows
from abliterate.prompts.row import Row, kind
from abliterate.replies.samples import Asked, Key

_OBEYED = re.compile("[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # control characters that JSON allows, and direction marks


@dataclass(frozen=True)
class Transcript:
    """A prompt, its reply (``response``), and everything needed to judge it again without the model.

    ``sample``: 0 for the greedy reply, which all rates are of; 1 and up for sampled ones.
    """

    set: str
    id: str
    prompt: str
    response: str
    lang: str = DEFAULT
    category: str = ""
    topic: str | None = None
    pair: str | None = None
    facts: tuple[str, ...] = ()
    official: str | None = None
    new_tokens: int = 0
    begins_in_thought: bool = False
    cut: bool = False  # it reached its token limit before its end
    sample: int = 0

    @property
    def key(self) -> Key:
        return self.set, self.id, self.sample

    def verdict(self) -> Verdict:
        return judge(self.response, self.facts, self.begins_in_thought, self.prompt, self.cut, self.official)


def transcript_of(asked: Asked, response: str, new_tokens: int, begins_in_thought: bool, cut: bool = False) -> Transcript:
    """The transcript of a reply to a prompt."""
    prompt = asked.prompt
    return Transcript(
        set=asked.set, id=prompt.id, prompt=prompt.text, response=response, lang=prompt.lang, category=prompt.category,
        topic=prompt.topic, pair=prompt.pair, facts=prompt.facts, official=prompt.official, new_tokens=new_tokens,
        begins_in_thought=begins_in_thought, cut=cut, sample=asked.sample,
    )  # fmt: skip


def append(path: Path, transcripts: Sequence[Transcript]) -> None:
    """Append lines, after removing an incomplete last one. They are on disk when this returns."""
    with open(path, "ab+", opener=no_link) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        for transcript in transcripts:
            file.write((line_of(asdict(transcript)) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def resume(path: Path, wanted: Sequence[Asked]) -> list[Transcript]:
    """The transcripts in a file begun earlier, once each and only of wanted replies; removes all others."""
    keys = {asked.key for asked in wanted}
    found = read(path)
    kept = list({t.key: t for t in found if t.key in keys}.values())
    if len(kept) < len(found):
        rewrite(path, kept)
    return kept


def rewrite(path: Path, transcripts: Sequence[Transcript]) -> None:
    """Make a file hold these transcripts and no others."""
    with whole_file(path) as partial:
        append(partial, transcripts)


def missing(kept: Sequence[Transcript], wanted: Sequence[Asked]) -> list[Asked]:
    """The wanted replies that have no transcript yet."""
    done = {t.key for t in kept}
    return [asked for asked in wanted if asked.key not in done]


def in_order(transcripts: Sequence[Transcript], wanted: Sequence[Asked]) -> list[Transcript]:
    """Transcripts in the order in which their replies are wanted."""
    order = {asked.key: i for i, asked in enumerate(wanted)}
    return sorted(transcripts, key=lambda t: order[t.key])


def greedy(transcripts: Iterable[Transcript]) -> list[Transcript]:
    """The greedy replies alone: those that all rates are of."""
    return [t for t in transcripts if not t.sample]


def samples_of(transcripts: Iterable[Transcript]) -> dict[tuple[str, str], list[Transcript]]:
    """The sampled replies by set and prompt, in the samples' order; whatever order the file has them in."""
    found: dict[tuple[str, str], list[Transcript]] = {}
    for transcript in sorted((t for t in transcripts if t.sample), key=lambda t: t.sample):
        found.setdefault((transcript.set, transcript.id), []).append(transcript)
    return found


def line_of(row: dict[str, Any]) -> str:
    """A row as one line of JSON. Non-ASCII text stays readable, except control characters, direction marks and lone surrogates."""
    text = _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(row, ensure_ascii=False))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(row)
    return text


def read(path: Path) -> list[Transcript]:
    """The transcripts in a file of this program, without an incomplete last line."""
    if not path.exists():
        return []
    complete = path.read_bytes().rpartition(b"\n")[0]
    return [_transcript(json.loads(line)) for line in complete.split(b"\n") if line]


def _transcript(row: dict[str, Any]) -> Transcript:
    return Transcript(**{**row, "facts": tuple(row.get("facts") or ())})


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], Transcript]]:
    """Rows of any transcript file, each with the transcript to judge. A row needs ``prompt`` and ``response``; ``facts``,
    ``official``, ``begins_in_thought`` and ``cut`` are optional.

    Raises InputError naming the line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    for row in json_rows(path):
        prompt, response = _said(row, "prompt"), _said(row, "response")
        facts = row.cells.get("facts") or []
        if not isinstance(facts, list) or not all(isinstance(f, str) for f in facts):
            raise InputError(f"{row.where}: 'facts' must be a list of texts")
        official = row.cells.get("official")
        if not isinstance(official, str | None):
            raise InputError(f"{row.where}: 'official' must be a text")
        told = {
            "begins_in_thought": row.cells.get("begins_in_thought", False),
            "cut": row.cells.get("cut") is True,
        }
        if not isinstance(told["begins_in_thought"], bool):
            raise InputError(f"{row.where}: 'begins_in_thought' must be true or false")
        number = str(row.cells.get("id", row.number))
        yield dict(row.cells), Transcript("", number, prompt, response, facts=tuple(facts), official=official, **told)


def _said(row: Row, key: str) -> str:
    text = row.cells.get(key)
    if isinstance(text, str):
        return text
    found = kind(text) if text is not None else "null" if key in row.cells else "missing"
    raise InputError(f"{row.where}: a line must be an object with the texts 'prompt' and 'response'; {key!r} is {found}")
