"""The transcripts on the page, with their filters: as many as two megabytes hold, spread evenly over sets and outcomes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from markupsafe import escape

from abliterate.config import Transcripts
from abliterate.measures.summary import Judged
from abliterate.report.document import ReplyPair, pairs_of
from abliterate.report.page.escaping import shown

_LENGTHS = (280, 180, 110)  # characters of an excerpt; shorter ones are tried until all pairs fit
_MARKUP, _OPTION, _THOUGHT = 540, 40, 80  # upper bounds, in bytes, of the markup of a pair, a filter option and a thought


@dataclass(frozen=True)
class Browser:
    """The ``pairs`` on the page, out of ``total``, and the filters' options: ``sets``, ``langs``, ``topics``, ``outcomes`` (base, edited).
    ``length``: characters of an excerpt, None for whole replies; ``thoughts``: whether any reply has a thought."""

    pairs: Sequence[ReplyPair]
    total: int
    length: int | None
    sets: Sequence[str]
    langs: Sequence[str]
    topics: Sequence[str]
    thoughts: bool
    outcomes: tuple[Sequence[str], Sequence[str]]


def browser(base: Mapping[str, Judged], edited: Mapping[str, Judged] | None, kind: Transcripts, room: int) -> Browser | None:
    """The transcripts that the page shows in ``room`` bytes; ``full`` ignores ``room``. None if nothing is shown."""
    total = sum(len(judged) for judged in base.values())
    if kind == "none" or not total:
        return None
    room -= sum(_OPTION + _bytes(topic) for topic in {t.topic or t.category for judged in base.values() for t, _ in judged})
    for length in [None] if kind == "full" else _LENGTHS:
        pairs = pairs_of(base, edited, length)
        if length is None or sum(sizes := [_size(pair) for pair in pairs]) <= room:
            break
    else:
        pairs = _share(pairs, sizes, room)
    return Browser(
        pairs=pairs,
        total=total,
        length=length,
        sets=list(dict.fromkeys(pair.set for pair in pairs)),
        langs=_there(pair.lang for pair in pairs),
        topics=_there(pair.topic for pair in pairs),
        thoughts=any(side.thought is not None for pair in pairs for side in pair.sides),
        outcomes=(_there(pair.base.outcome for pair in pairs), _there(pair.edited.outcome for pair in pairs if pair.edited)),
    )


def _size(pair: ReplyPair) -> int:
    """Bytes that a pair takes on the page."""
    texts = [pair.prompt, pair.set, pair.topic, *(text for side in pair.sides for text in (side.thought or "", side.text, side.rule))]
    return _MARKUP + _THOUGHT * sum(side.thought is not None for side in pair.sides) + sum(map(_bytes, texts))


def _bytes(text: str) -> int:
    """Bytes of a text on the page, escaped."""
    return len(escape(shown(text)).encode())


def _share(pairs: Sequence[ReplyPair], sizes: Sequence[int], room: int) -> list[ReplyPair]:
    """As many pairs as there is room for, in their order: one of each set and outcomes in turn, so that rare outcomes are there too."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        groups[pair.set, *(side.outcome for side in pair.sides)].append(number)
    taken, left = [], room
    for number in (n for turn in zip_longest(*groups.values()) for n in turn if n is not None):
        left -= sizes[number]
        if left < 0:
            break
        taken.append(number)
    return [pairs[number] for number in sorted(taken)]


def _there(values: Iterable[str]) -> list[str]:
    return sorted({value for value in values if value})
