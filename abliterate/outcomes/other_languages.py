"""Tell that a text is clearly in a language that has no rules.

Scripts decide, and for the Latin script small words (``other_languages.toml``). An unclear text (code, formulas, only names, a mixture)
counts as one that the rules know.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from abliterate.outcomes.normalise import own_voice, sentences, without_code
from abliterate.prompts.languages.recognition import count_of_letters
from abliterate.prompts.languages.record import Language, languages

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


@dataclass(frozen=True)
class _Mixed:
    """A language written in the letters of another one and ``own`` ones, by which it is told."""

    name: str
    own: re.Pattern[str]
    least: int
    letters: re.Pattern[str]
    share: float
    others: re.Pattern[str]
    scripts: tuple[str, ...]

    def is_in(self, text: str) -> bool:
        """Whether the text has enough of its letters."""
        if len(self.own.findall(text)) < self.least:
            return False
        letters = len(self.letters.findall(text))
        return letters >= self.share * (letters + len(self.others.findall(text)))


@dataclass(frozen=True)
class _Table:
    """Small words by language without rules, those of languages with rules (``known``), those that stand in names; the languages told by
    letters of their own; scripts, and those by which no language with rules is told (``unruled``); and limits."""

    words: dict[str, frozenset[str]]
    known: frozenset[str]
    names: frozenset[str]
    mixed: tuple[_Mixed, ...]
    scripts: frozenset[str]
    unruled: frozenset[str]
    limits: dict[str, float]


def language_without_rules(answer: str) -> str | None:
    """The language, or script (``Thai script``), of an answer's own words, if that clearly has no rules; else None."""
    return _language(own_voice(without_code(unicodedata.normalize("NFC", answer))))


def with_rules(answer: str) -> str:
    """The sentences of an answer that are in a language with rules."""
    return "\n".join(part for part in sentences(own_voice(answer)) if any(_is_in(language, part) for language in languages()))


def _language(text: str) -> str | None:
    words = _words(text)
    scripts = Counter(script for word in words for script in map(_script, word) if script)
    return _by_script(text, words, scripts) or _by_words(words, scripts)


def _words(text: str) -> list[str]:
    """The words of a text, with their vowel signs and other marks."""
    text = text.replace("’", "'")
    if text.isascii():
        return _WORD.findall(text)
    kept = ("'" if c == "'" else c if c.isalpha() or unicodedata.category(c)[0] == "M" else " " for c in text)
    return [bare for word in "".join(kept).split() if (bare := word.strip("'"))]


def _by_script(text: str, words: Sequence[str], scripts: Counter[str]) -> str | None:
    """The language or script, without rules, of most of the text, apart from names and single letters; else None."""
    most = _table().limits
    total = sum(scripts.values())
    enough = max(most["letters"] * total, most["one_script"] * (total - scripts["LATIN"]))
    for mixed in _table().mixed:
        if mixed.is_in(text) and sum(scripts[script] for script in mixed.scripts) >= enough:
            return mixed.name
    others = Counter({script: count for script, count in scripts.items() if script in _table().unruled})
    if not others or sum(others.values()) < most["letters"] * total or _share(words, _table().known) > most["known"]:
        return None
    script, count = others.most_common(1)[0]
    own = [word for word in words if len(word) > 1 and _script(word[0]) == script]
    if count < most["one_script"] * sum(others.values()) or not own:
        return None
    language, hits = _likeliest(own)
    names_alone = all(word[0].isupper() for word in own)
    if not hits and (names_alone or (len(own) < most["least_words"] and sum(map(len, own)) < most["least_letters"])):
        return None
    return language if hits and hits >= most["words"] * len(own) else f"{script.capitalize()} script"


def _by_words(words: Sequence[str], scripts: Counter[str]) -> str | None:
    """A language in Latin letters whose function words the text has, with hardly any of languages with rules; else None."""
    table, most = _table(), _table().limits
    if scripts["LATIN"] < most["letters"] * sum(scripts.values()) or len(words) < 2:
        return None
    language, hits = _likeliest(words)
    if not language:
        return None
    theirs = table.words[language]
    said = [word.casefold() for word in words]
    known = sum(word in table.known and word not in theirs for word in said)
    distinct = len({word for word in said if word in _evidence(language)})
    others = [word for word in words if word.casefold() not in theirs]
    names_alone = bool(others) and all(word[0].isupper() for word in others)
    enough = distinct >= most["distinct"] + names_alone and sum(word in theirs for word in said) >= most["words"] * len(words)
    short = len(words) <= most["short"] and 2 * hits >= len(words) and not names_alone
    return language if (enough or short) and hits >= most["against"] * known else None


def _likeliest(words: Sequence[str]) -> tuple[str, int]:
    """The language with the most function words in the text, and how many. Words of languages with rules and
    those of names don't count."""
    said = Counter(word.casefold() for word in words)
    found = {name: sum(count for word, count in said.items() if word in _evidence(name)) for name in _table().words}
    best = max(found, key=lambda name: found[name])
    return (best, found[best]) if found[best] else ("", 0)


@cache
def _evidence(language: str) -> frozenset[str]:
    table = _table()
    return table.words[language] - table.known - table.names


def _is_in(language: Language, sentence: str) -> bool:
    """Whether a sentence is in a language with rules, told by its letters or by its small words."""
    told = language.recognition
    if told.text is None:
        return _share(_words(sentence), told.small_words) >= told.sentence and _language(sentence) is None
    letters = sum(map(str.isalpha, sentence))
    return count_of_letters(language, sentence) > told.sentence * letters and not any(m.is_in(sentence) for m in _table().mixed)


def _share(words: Sequence[str], of: frozenset[str]) -> float:
    return sum(word.casefold() in of for word in words) / max(len(words), 1)


@cache
def _script(letter: str) -> str:
    """The script of a letter, which is the first word of its Unicode name; empty for scripts that don't matter here."""
    if letter.isascii():
        return "LATIN" if letter.isalpha() else ""
    first = _script_name(letter)
    return first if first == "LATIN" or first in _table().scripts or any(first in m.scripts for m in _table().mixed) else ""


def _script_name(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0]


@cache
def _table() -> _Table:
    found: dict[str, Any] = tomllib.loads((Path(__file__).parent / "other_languages.toml").read_text(encoding="utf-8"))
    ruled = {language.name for language in languages()}
    scripts = frozenset(found["scripts"]["names"].split())
    return _Table(
        words={name: frozenset(words.split()) for name, words in found["languages"].items() if name not in ruled},
        known=frozenset().union(*(language.recognition.small_words for language in languages())),
        names=frozenset(found["names"]["words"].split()),
        mixed=tuple(_mixed(row) for row in found["mixed"] if row["name"] not in ruled),
        scripts=scripts,
        unruled=scripts - {_script_name(each.writing.letters[0]) for each in languages() if each.recognition.text is not None},
        limits=found["limits"],
    )


def _mixed(row: dict[str, Any]) -> _Mixed:
    own, letters, others = (re.compile(f"[{row[key]}]") for key in ("own", "letters", "others"))
    return _Mixed(row["name"], own, row["least"], letters, row["share"], others, tuple(row["scripts"].split()))
