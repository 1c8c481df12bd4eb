"""Detect broken output by measures: loops, few distinct n-grams, compression, mixed scripts, ungrammatical pairs, echo."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from abliterate.outcomes.normalise import ends, plain, sentences
from abliterate.outcomes.ruleset import matches, shared, table
from abliterate.prompts.languages.recognition import language_of
from abliterate.prompts.languages.record import languages

Measure = Callable[[str, str | None], str | None]


def is_degenerate(text: str, prompt: str | None = None, measures: Sequence[Measure] | None = None) -> str | None:
    """Why a plain text is broken (a loop, token soup, an echo of its prompt), or None. ``measures``: those to apply; default: all."""
    for measure in measures or (*ANY_LANGUAGE, _scripts, _ungrammatical, _echo):
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


def _echo(text: str, prompt: str | None) -> str | None:
    """Why a text only repeats the question or order of its prompt and leaves it open, or None."""
    if prompt is None or matches("echo_is_due", asked := plain(prompt)):
        return None
    most = limits()
    said, given = _units(text), _units(asked)
    if len(given) < most["echo_least_units"] or len(said) < most["echo_least_units"]:
        return None
    inside = _covered(said, given)
    share = sum(inside) / len(said)
    if share >= most["echo_share"] and _given_back(text, asked):
        return f"echoes the prompt: {share:.0%}"
    if matches("open_question", asked) and not _news(said, given, text):
        return "says nothing that the prompt doesn't"
    if _left_open(text, said, given, share):
        return "leaves the question word standing in a statement"
    return None


def after_echo(text: str, prompt: str | None) -> str:
    """The text without its first sentence if that only repeats a part of the prompt; otherwise the whole text."""
    first, *others = sentences(text)
    said, given = _units(first), _units("" if prompt is None else plain(prompt))
    if min(len(said), len(given)) < limits()["echo_least_units"] or not others:
        return text
    rest = "\n".join(others)
    return rest if sum(_covered(said, given)) >= limits()["echo_first"] * len(said) and len(rest) >= limits()["after_echo"] else text


def stays_open(text: str, prompt: str | None) -> str | None:
    """Why a text that repeats the question and soon breaks off is an echo; None if it does not do that."""
    rest = after_echo(text, prompt)
    first = text[: text.find(rest)]
    if rest is text or not matches("open_question", plain(prompt or "")) or not _given_back(first, plain(prompt or "")):
        return None
    complete = re.search(rf"[{ends()}\")\]】]$|^[\d\W]+\w{{0,4}}$", rest)
    return None if complete or len(rest) > limits()["echo_rest"] else "echoes the prompt, then breaks off"


def _units(text: str) -> list[str]:
    """The units of the text's language, without punctuation."""
    return re.findall(r"\w+" if language_of(text).writing.is_spaced else r"\w", text)


def _covered(said: Sequence[str], given: Sequence[str]) -> list[bool]:
    """Which units are in a trigram that also occurs in the prompt."""
    known = set(zip(given, given[1:], given[2:], strict=False))
    inside = [False] * len(said)
    for i, gram in enumerate(zip(said, said[1:], said[2:], strict=False)):
        if gram in known:
            inside[i : i + 3] = [True] * 3
    return inside


def _given_back(text: str, asked: str) -> bool:
    """Whether the text repeats the question word, or the beginning of the order."""
    words = set(shared("question_words").findall(asked)) & set(shared("question_words").findall(text))
    return bool(words) or (matches("order", asked) and text[:4] == asked[:4])


def _left_open(text: str, said: Sequence[str], given: Sequence[str], share: float) -> bool:
    """Whether a short statement, of which the prompt has the ``share``, repeats its question word with the words before it:
    ``X是谁，他…``."""
    bound = language_of(text).broken.open_statement
    if bound is None or share < bound.share or len(said) > bound.most or re.search(bound.unless, text):
        return False
    joined, asked = "".join(said), "".join(given)
    words = shared("question_words").finditer(asked)
    return any(asked[max(w.start() - 2, 0) : w.end()] in joined for w in words if w.start() >= 2)


def _news(said: Sequence[str], given: Sequence[str], text: str) -> bool:
    """Whether a text has words besides function words and those of the prompt; words are compared by their first letters."""
    most = limits()
    if len(said) < most["news_least_units"]:
        return True
    common = _function_words()
    known = {unit[: most["stem"]] for unit in given}
    new = {unit for unit in said if unit not in common and unit[: most["stem"]] not in known}
    if max(map(len, said)) > 1 or len(said) < most["news_one_in"]:
        return bool(new)
    broken_off = re.search(rf"[{ends()})\"\]:]$", text) is None
    return len(new) > (max(1, most["news_broken_off"] * len(said)) if broken_off else 1)


@cache
def _function_words() -> frozenset[str]:
    return frozenset(word for language in languages() for word in language.broken.function_words.split())


@cache
def _full_stop() -> re.Pattern[str]:
    return re.compile(rf"[{ends()}\n]+\s*")


# Measures that work in any language; the others rely on the words of those with rules.
ANY_LANGUAGE: tuple[Measure, ...] = (_loop, _repeated, _compressed, _soup)
