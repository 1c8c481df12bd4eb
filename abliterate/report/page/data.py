"""The transcripts as data for the page's script: JSON in which no character can end the element or begin another one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from markupsafe import Markup

from abliterate.outcomes.deciding import Why
from abliterate.report.bars.kinds import KINDS
from abliterate.report.document import ReplyPair, ReplySide
from abliterate.report.page.escaping import language, shown

_ESCAPED = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_KINDS = [kind.name for kind in KINDS]
_WHY: tuple[Why, ...] = get_args(Why)
_NONE = -1


@dataclass(frozen=True)
class Data:
    """The names that rows refer to by their places, and a row of JSON for each pair: set, language, topic, prompt, facts, official line, a
    side for each model. A side: outcome, worth, reason (as kinds), grade, whether it has a fact, rule, thought (or none), and the text in
    pieces: a plain text, or one that decided, [why, text]."""

    sets: Sequence[str]
    langs: Sequence[str]
    topics: Sequence[str]
    rows: Sequence[str]

    @classmethod
    def of(cls, pairs: Sequence[ReplyPair]) -> Data:
        sets = list(dict.fromkeys(pair.set for pair in pairs))
        langs, topics = _there(pair.lang for pair in pairs), _there(pair.topic for pair in pairs)
        places = [{name: place for place, name in enumerate(names)} for names in (sets, langs, topics)]
        return cls(sets, langs, topics, [_json(_row(pair, *(found.__getitem__ for found in places))) for pair in pairs])

    def only(self, places: Iterable[int]) -> Data:
        """The data with only the rows at these places."""
        return replace(self, rows=[self.rows[place] for place in places])

    @property
    def sizes(self) -> list[int]:
        """Bytes of each row, with the comma after it."""
        return [len(row.encode()) + 1 for row in self.rows]

    @property
    def head_size(self) -> int:
        """Bytes of everything but the rows."""
        return len(replace(self, rows=()).json().encode())

    def json(self) -> Markup:
        """The JSON, inert in a page."""
        langs = [[shown(lang), language(lang) or ""] for lang in self.langs]
        head = {
            "sets": list(map(shown, self.sets)),
            "langs": langs,
            "topics": list(map(shown, self.topics)),
            "kinds": [[kind.name, shown(kind.title), kind.of, kind.group] for kind in KINDS],
            "why": list(_WHY),
        }
        return Markup(f'{_json(head)[:-1]},"rows":[{",".join(self.rows)}]}}')


def _row(pair: ReplyPair, in_sets: Callable[[str], int], in_langs: Callable[[str], int], in_topics: Callable[[str], int]) -> list[object]:
    known: list[object] = [shown(pair.prompt), [shown(fact) for fact in pair.facts], shown(pair.official or "")]
    return [in_sets(pair.set), in_langs(pair.lang), in_topics(pair.topic), *known, *map(_side, pair.sides)]


def _side(side: ReplySide) -> list[object]:
    found = side.verdict
    worth = found.worth or ("hedged" if found.hedged else None)
    pieces: list[object] = [shown(text) if why is None else [_WHY.index(why), shown(text)] for text, why in side.pieces()]
    substance = _NONE if found.substance is None else int(found.substance)
    thought = _NONE if side.thought is None else shown(side.thought)
    return [_kind(found.outcome), _kind(worth), _kind(found.reason), found.grade or 0, substance, shown(found.rule), thought, pieces]


def _kind(name: str | None) -> int:
    return _KINDS.index(name) if name in _KINDS else _NONE


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPED)


def _there(values: Iterable[str]) -> list[str]:
    return sorted(set(values))
