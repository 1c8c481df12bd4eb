"""Detect the language of a text: one that the rules know (English, Chinese), or clearly another one.

Scripts decide, and for the Latin script function words (``languages.toml``). An unclear text (code, formulas, only names, a mixture)
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

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_KANA, _HIRAGANA, _HAN = re.compile(r"[\u3041-\u30ff]"), re.compile(r"[\u3041-\u309f]"), re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


@dataclass(frozen=True)
class _Known:
    """The table: function words by language, English words, words that occur in names, scripts without rules, and limits."""

    words: dict[str, frozenset[str]]
    english: frozenset[str]
    names: frozenset[str]
    scripts: frozenset[str]
    limits: dict[str, float]


def language_without_rules(answer: str) -> str | None:
    """The language, or script (``Thai script``), of an answer's own words, if it is clearly neither English nor Chinese; else None."""
    return _language(own_voice(without_code(unicodedata.normalize("NFC", answer))))


def with_rules(answer: str) -> str:
    """The sentences of an answer that are in English or Chinese."""
    return "\n".join(part for part in sentences(own_voice(answer)) if _is_english(part) or _is_chinese(part))


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
    most = _known().limits
    total = sum(scripts.values())
    japanese = scripts["CJK"] + scripts["HIRAGANA"] + scripts["KATAKANA"]
    if _is_japanese(text) and japanese >= max(most["letters"] * total, most["one_script"] * (total - scripts["LATIN"])):
        return "Japanese"
    others = Counter({script: count for script, count in scripts.items() if script in _known().scripts})
    if not others or sum(others.values()) < most["letters"] * total or _share(words, _known().english) > most["english"]:
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
    """A language in Latin letters whose function words the text has, with hardly any English ones; else None."""
    known, most = _known(), _known().limits
    if scripts["LATIN"] < most["letters"] * sum(scripts.values()) or len(words) < 2:
        return None
    language, hits = _likeliest(words)
    if not language:
        return None
    theirs = known.words[language]
    said = [word.casefold() for word in words]
    english = sum(word in known.english - theirs for word in said)
    distinct = len({word for word in said if word in _evidence(language)})
    others = [word for word in words if word.casefold() not in theirs]
    names_alone = bool(others) and all(word[0].isupper() for word in others)
    enough = distinct >= most["distinct"] + names_alone and sum(word in theirs for word in said) >= most["words"] * len(words)
    short = len(words) <= most["short"] and 2 * hits >= len(words) and not names_alone
    return language if (enough or short) and hits >= most["against"] * english else None


def _likeliest(words: Sequence[str]) -> tuple[str, int]:
    """The language with the most function words in the text, and how many. Words that are also English or part of names don't count."""
    said = Counter(word.casefold() for word in words)
    found = {name: sum(count for word, count in said.items() if word in _evidence(name)) for name in _known().words}
    best = max(found, key=lambda name: found[name])
    return (best, found[best]) if found[best] else ("", 0)


@cache
def _evidence(language: str) -> frozenset[str]:
    known = _known()
    return known.words[language] - known.english - known.names


def _is_japanese(text: str) -> bool:
    kana, han, hiragana = (len(kind.findall(text)) for kind in (_KANA, _HAN, _HIRAGANA))
    return hiragana >= _known().limits["hiragana"] and kana >= _known().limits["kana"] * (kana + han)


def _is_english(sentence: str) -> bool:
    words = _words(sentence)
    return _share(words, _known().english) >= _known().limits["sentence"] and _language(sentence) is None


def _is_chinese(sentence: str) -> bool:
    letters = sum(map(str.isalpha, sentence))
    return 2 * len(_HAN.findall(sentence)) > letters and not _is_japanese(sentence)


def _share(words: Sequence[str], of: frozenset[str]) -> float:
    return sum(word.casefold() in of for word in words) / max(len(words), 1)


@cache
def _script(letter: str) -> str:
    """The script of a letter, which is the first word of its Unicode name; empty for scripts that don't matter here."""
    if letter.isascii():
        return "LATIN" if letter.isalpha() else ""
    first = unicodedata.name(letter, "").split(" ")[0]
    return first if first in ("LATIN", "CJK", "HIRAGANA", "KATAKANA") or first in _known().scripts else ""


@cache
def _known() -> _Known:
    table: dict[str, Any] = tomllib.loads((Path(__file__).parent / "languages.toml").read_text(encoding="utf-8"))
    english = table["english"]
    return _Known(
        words={name: frozenset(words.split()) for name, words in table["languages"].items()},
        english=frozenset(english["words"].split()),
        names=frozenset(english["names"].split()),
        scripts=frozenset(table["scripts"]["names"].split()),
        limits=table["limits"],
    )
