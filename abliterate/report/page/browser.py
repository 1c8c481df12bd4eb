"""The transcripts on the page, with their filters: as many as two megabytes hold, spread evenly over sets and outcomes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

from markupsafe import Markup, escape

from abliterate.config import Transcripts
from abliterate.measures.summary import Judged
from abliterate.report.bars.kinds import KINDS, Kind
from abliterate.report.document import ReplyPair, ReplySide, pairs_of
from abliterate.report.page.data import Data
from abliterate.report.page.escaping import shown

_LENGTHS = (280, 180, 110)  # characters of an excerpt; shorter ones are tried until all pairs fit
_LISTED = 30  # pairs that a reader without JavaScript sees
_MARKUP, _OPTION, _THOUGHT, _MARK = 640, 40, 80, 40  # upper bounds, in bytes, of the markup of a pair, a filter option, a thought, a mark


@dataclass(frozen=True)
class Browser:
    """The ``pairs`` on the page, out of ``total``, as ``data`` for its script, and the filters' options: ``sets``, ``langs``, ``topics``,
    ``outcomes``, ``worths``, ``reasons``. ``listed``: the pairs that are there without a script too. ``length``: characters of an excerpt,
    None for whole replies; ``thoughts``: whether any reply has a thought."""

    pairs: Sequence[ReplyPair]
    listed: Sequence[ReplyPair]
    total: int
    length: int | None
    data: Markup
    thoughts: bool
    sets: Sequence[str]
    langs: Sequence[str]
    topics: Sequence[str]
    outcomes: Sequence[Kind]
    worths: Sequence[Kind]
    reasons: Sequence[Kind]


def browser(base: Mapping[str, Judged], edited: Mapping[str, Judged] | None, kind: Transcripts, room: int) -> Browser | None:
    """The transcripts that the page shows in ``room`` bytes; ``full`` ignores ``room``. None if nothing is shown."""
    total = sum(len(judged) for judged in base.values())
    if kind == "none" or not total:
        return None
    whole = pairs_of(base, edited)
    if kind == "full":
        listed = [whole[number].cut(_LENGTHS[0]) for number in sorted(islice(_in_turn(whole), _LISTED))]
        return _browser(whole, listed, total, None, Data.of(whole))
    for length in _LENGTHS:
        pairs = [pair.cut(length) for pair in whole]
        data = Data.of(pairs)
        places = list(_in_turn(pairs))
        left = room - data.head_size - _options(pairs) - sum(_size(pairs[place]) for place in places[:_LISTED])
        if sum(data.sizes) <= left:
            break
    else:
        chosen = _share(places, data.sizes, left)
        pairs, data = [pairs[place] for place in chosen], data.only(chosen)
    listed = [pairs[place] for place in sorted(islice(_in_turn(pairs), _LISTED))]
    return _browser(pairs, listed, total, length, data)


def _browser(pairs: Sequence[ReplyPair], listed: Sequence[ReplyPair], total: int, length: int | None, data: Data) -> Browser:
    sides = [side for pair in pairs for side in pair.sides]
    there = {name for side in sides for name in (side.outcome, side.verdict.worth, side.verdict.reason, _hedged(side))}
    kinds = [kind for kind in KINDS if kind.name in there]
    return Browser(
        pairs=pairs,
        listed=listed,
        total=total,
        length=length,
        data=data.json(),
        thoughts=any(side.thought is not None for side in sides),
        sets=data.sets,
        langs=[lang for lang in data.langs if lang],
        topics=[topic for topic in data.topics if topic],
        outcomes=[kind for kind in kinds if kind.name == kind.of],
        worths=[kind for kind in kinds if kind.name != kind.of == "answered"],
        reasons=[kind for kind in kinds if kind.name != kind.of != "answered"],
    )


def _hedged(side: ReplySide) -> str | None:
    return "hedged" if side.verdict.hedged else None


def _options(pairs: Sequence[ReplyPair]) -> int:
    """Bytes of the options of the filters."""
    names = {name for pair in pairs for name in (pair.set, pair.topic, pair.lang)}
    return sum(_OPTION + _bytes(name) for name in names)


def _size(pair: ReplyPair) -> int:
    """Bytes that a listed pair takes on the page."""
    texts = [pair.prompt, pair.set, pair.topic, *pair.facts, pair.official or ""]
    texts += [text for side in pair.sides for text in (side.thought or "", side.text, side.verdict.rule)]
    marks = sum(len(side.words) for side in pair.sides)
    return _MARKUP + _MARK * marks + _THOUGHT * sum(side.thought is not None for side in pair.sides) + sum(map(_bytes, texts))


def _bytes(text: str) -> int:
    """Bytes of a text on the page, escaped."""
    return len(escape(shown(text)).encode())


def _share(places: Iterable[int], sizes: Sequence[int], room: int) -> list[int]:
    """The first of these pairs for which there is room, in the order of the page."""
    taken: list[int] = []
    for place in places:
        room -= sizes[place]
        if room < 0:
            break
        taken.append(place)
    return sorted(taken)


def _in_turn(pairs: Sequence[ReplyPair]) -> Iterator[int]:
    """The places of the pairs: one of each set and outcomes in turn, so that rare outcomes come early."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, pair in enumerate(pairs):
        groups[pair.set, *(side.outcome for side in pair.sides)].append(place)
    return (place for turn in zip_longest(*groups.values()) for place in turn if place is not None)
