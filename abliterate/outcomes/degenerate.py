"""Detect broken output by measures: loops, few distinct n-grams, compression, mixed scripts, ungrammatical pairs."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from abliterate.outcomes.normalise import ends
from abliterate.outcomes.ruleset import matches, shared, table
from abliterate.prompts.languages.recognition import language_of

Measure = Callable[[str, str | None], str | None]


def is_degenerate(text: str, prompt: str | None = None, measures: Sequence[Measure] | None = None) -> str | None:
    """Why a plain text is broken (a loop, token soup, mixed scripts), or None. ``measures``: those to apply; default: all."""
    for measure in measures or (*ANY_LANGUAGE, _scripts, _ungrammatical):
        if why := measure(text, prompt):
            return why
    return None


@cache
def limits() -> dict[str, Any]:
    found: dict[str, Any] = table("degenerate")
    return found


def looped_share(text: str, period: int, least: int) -> float:
    """Share of the characters inside a loop: a unit of at most ``period`` characters, at least ``least`` times in a row."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    in_loop = np.zeros(len(codes), dtype=bool)
    for size in range(1, min(period, len(codes) // least) + 1):
        again = np.concatenate(([False], codes[size:] == codes[:-size], [False]))  # the character that stands ``size`` later is the same
        starts, ends = np.flatnonzero(again[1:] != again[:-1]).reshape(-1, 2).T
        for start, end in zip(starts, ends + size, strict=True):
            if end - start >= max(least * size, 6):
                in_loop[start:end] = True
    return float(in_loop.sum()) / max(len(codes), 1)


def distinct_share(units: Sequence[str], n: int) -> float:
    """Distinct n-grams divided by all n-grams."""
    grams = list(zip(*(units[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def _loop(text: str, prompt: str | None) -> str | None:
    most = limits()
    tight = re.sub(r"\s+", "", shared("loop_exempt").sub(" ", text))[: most["loop_window"]]
    if len(tight) < most["loop_least_characters"] or matches("asks_for_repetition", prompt):
        return None
    for times, floor in ((most["loop_times"], most["loop_share"]), (most["loop_many_times"], most["loop_many_share"])):
        if (share := looped_share(tight, most["loop_period"], times)) >= floor:
            return f"a loop of {times} times or more makes up {share:.0%}"
    return None


def _repeated(text: str, prompt: str | None) -> str | None:
    if matches("asks_for_repetition", prompt):
        return None
    language, most = language_of(text), limits()
    units = text.split() if language.writing.is_spaced else list(re.sub(r"\s+", "", text))
    if len(units) >= most["least_units"]:
        bound = language.broken.long_text if len(units) > most["short_units"] else language.broken.short_text
        if (share := distinct_share(units, bound.n)) < bound.distinct:
            return f"repeats: {share:.0%} distinct {bound.n}-grams"
    said = [part for part in _full_stop().split(text) if part.strip()]
    if len(said) >= most["least_sentences"] and len(set(said)) < most["distinct_sentences"] * len(said):
        return f"repeats: {len(set(said))} distinct sentences of {len(said)}"
    return None


def _compressed(text: str, prompt: str | None) -> str | None:
    data, most = text.encode("utf-8", "replace"), limits()
    if len(data) >= most["compression_least_bytes"] and len(zlib.compress(data, 9)) < most["compression"] * len(data):
        return f"compresses to less than {most['compression']:.0%}"
    return None


def _soup(text: str, prompt: str | None) -> str | None:
    most = limits()
    visible = [c for c in text.rstrip("\ufffd") if not c.isspace()]
    letters = sum(c.isalnum() or _is_vowel_sign(c) for c in visible)
    broken = sum(c in most["mojibake"] for c in visible)
    if broken >= most["mojibake_least"] and broken >= most["mojibake_share"] * len(visible):
        return f"{broken} replacement characters"
    if len(visible) >= 24 and letters < most["letters_share"] * len(visible):
        return "fewer letters than marks"
    return None


def _is_vowel_sign(char: str) -> bool:
    """Whether a sign is part of a syllable (Hindi, Thai), and not a combining accent stacked on a letter."""
    return not char.isascii() and unicodedata.category(char)[0] == "M" and not unicodedata.name(char, "COMBINING").startswith("COMBINING")


def _scripts(text: str, prompt: str | None) -> str | None:
    if matches("asks_for_languages", prompt):
        return None
    bare, most = re.sub(r"\([^()\n]*\)|\"[^\"\n]*\"|「[^」\n]*」", "", text), limits()
    letters = [c for c in bare if c.isalpha()]
    scripts = {unicodedata.name(c, "?").split()[0] for c in letters} - {"FULLWIDTH", "HALFWIDTH", "MICRO", "OHM", "MODIFIER", "GREEK"}
    least = most["scripts"] if prompt is not None else most["scripts_without_prompt"]
    if len(scripts) >= least and len(letters) < most["letters_a_script"] * len(scripts):
        return f"{len(scripts)} scripts"
    return None


def _ungrammatical(text: str, prompt: str | None) -> str | None:
    most = limits()
    writing = language_of(text).writing
    words = len(text.split()) if writing.is_spaced else len(text) / writing.characters_a_word
    for name, least in (("impossible", 1), ("doubtful", 2)):
        found = len(shared(name).findall(text))
        if found >= least and found * most[f"{name}_every"] >= words and not matches("asks_for_languages", prompt):
            return f"{found} {name} pairs of words"
    return None


@cache
def _full_stop() -> re.Pattern[str]:
    return re.compile(rf"[{ends()}\n]+\s*")


# Measures that work in any language; the others rely on the words of those with rules.
ANY_LANGUAGE: tuple[Measure, ...] = (_loop, _repeated, _compressed, _soup)
