"""Detect replies that give the prompt back: what an evasive reply says is the question or the order itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from abliterate.outcomes.degenerate import limits
from abliterate.outcomes.normalise import ends, plain, sentences
from abliterate.outcomes.ruleset import matches, shared
from abliterate.prompts.languages.recognition import language_of
from abliterate.prompts.languages.record import languages

# Why a reply gives its prompt back, in the rule of the verdict.
ECHOES = "echoes the prompt"
NOTHING_NEW = "says nothing that the prompt doesn't"
STANDING = "leaves the question word standing in a statement"


def echo(text: str, prompt: str | None) -> str | None:
    """Why a plain text says nothing but the question or the order of its prompt, or None."""
    if prompt is None or matches("echo_is_due", asked := plain(prompt)):
        return None
    most = limits()
    said, given = _units(text), _units(asked)
    if len(given) < most["echo_least_units"] or len(said) < most["echo_least_units"]:
        return None
    inside = _covered(said, given)
    share = sum(inside) / len(said)
    if share >= most["echo_share"] and _given_back(text, asked):
        return f"{ECHOES}: {share:.0%}"
    if matches("open_question", asked) and not _news(said, given, text):
        return NOTHING_NEW
    if _left_open(text, said, given, share):
        return STANDING
    return stays_open(text, prompt)


def evades(text: str, prompt: str | None) -> bool:
    """Whether a plain text is an echo in whole sentences: at most two, the last one with its end, few units said again, and no question
    word left standing in a statement. Other echoes are broken output."""
    if prompt is None or echo(text, prompt) is None:
        return False
    said, given = _units(text), _units(plain(prompt))
    grams = list(zip(said, said[1:], said[2:], strict=False))
    ended = re.search(rf"[{ends()}]\W*$", text) is not None or said[-3:] == given[-3:]
    whole = ended and len(sentences(text)) <= limits()["evasive_sentences"] and len(set(grams)) >= limits()["evasive_distinct"] * len(grams)
    verbatim = "".join(said) in "".join(given)
    return whole and (verbatim or not _left_open(text, said, given, sum(_covered(said, given)) / len(said)))


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
    return None if complete or len(rest) > limits()["echo_rest"] else f"{ECHOES}, then breaks off"


def copied(text: str, prompt: str) -> list[tuple[int, int]]:
    """Where a text has three units or more in a row that its prompt has too."""
    found = list(re.finditer(_unit(text), text))
    inside = _covered([unit.group() for unit in found], _units(plain(prompt)))
    starts = [i for i, here in enumerate(inside) if here and not (i and inside[i - 1])]
    ends = [i for i, here in enumerate(inside) if here and not (i + 1 < len(inside) and inside[i + 1])]
    return [(found[start].start(), found[end].end()) for start, end in zip(starts, ends, strict=True)]


def _units(text: str) -> list[str]:
    """The units of the text's language, without punctuation."""
    return re.findall(_unit(text), text)


def _unit(text: str) -> str:
    return r"\w+" if language_of(text).writing.is_spaced else r"\w"


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
