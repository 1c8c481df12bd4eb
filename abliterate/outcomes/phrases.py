"""The outcome of an answer by its wording: learned weights of phrases, for what no list of rules covers.

A linear model (multinomial logistic regression) over word and character n-grams of the answer, of its opening and of its end, its
overlap with the prompt, and the outcome of the rules. The weights are in ``phrases.safetensors``; ``scripts/train_detector`` learns them
from the written replies in ``tests/data``, never from the test half of the labelled set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from abliterate.outcomes.linear import Linear, read_linear
from abliterate.outcomes.normalise import ends, letters_of, own_voice, plain, sentences
from abliterate.outcomes.records import LEARNED, WITHHELD, Outcome
from abliterate.prompts.languages.recognition import language_of, letters_pattern
from abliterate.prompts.languages.record import DEFAULT, Language, languages

FILE = Path(__file__).parent / "phrases.safetensors"
_WITHHELD = len(WITHHELD)  # as many of the first classes are withheld
AGAINST_RULES = 1.5  # nats of evidence that it takes to contradict the rules
REACH = 12  # tokens of the opening and of the end
REPEATED = "■"  # stands for words of the prompt
_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][a-z]+")
_LIST = re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)])\s")


@dataclass(frozen=True)
class _Words:
    """What the languages say of words: a ``token`` of any of them, how an answer that is not cut has ``ended``, common words by the
    language's code, and the words for the model and the reader in any language."""

    token: re.Pattern[str]
    ended: re.Pattern[str]
    common: Mapping[str, frozenset[str]]
    first_person: frozenset[str]
    second_person: frozenset[str]


@cache
def _words() -> _Words:
    letters = letters_of(spaced=True)
    return _Words(
        token=re.compile(rf"[{letters}]+(?:'[{letters}]+)?|\d+|[{letters_of(spaced=False)}]|[^\w\s]"),
        ended=re.compile(rf"[{ends()}…\"”)]\s*$"),
        common={language.code: frozenset(language.phrases.common.split()) for language in languages()},
        first_person=frozenset(word for language in languages() for word in language.phrases.first_person.split()),
        second_person=frozenset(word for language in languages() for word in language.phrases.second_person.split()),
    )


@dataclass(frozen=True)
class Weighed:
    """The likeliest outcome, and the phrases with most evidence for it (against the best outcome on the other side of withheld)."""

    outcome: Outcome
    evidence: tuple[str, ...]


def weigh(found: Mapping[str, float], by_rules: Outcome) -> Weighed:
    """The outcome of an answer with these features. Contradicting the rules on withheld or not takes ``AGAINST_RULES``."""
    model = learned()
    total = model.logits(found)
    withholds = np.logaddexp.reduce(total[:_WITHHELD]) - np.logaddexp.reduce(total[_WITHHELD:])
    withheld = withholds > (-AGAINST_RULES if by_rules in LEARNED[:_WITHHELD] else AGAINST_RULES)
    side, other = (slice(0, _WITHHELD), slice(_WITHHELD, None)) if withheld else (slice(_WITHHELD, None), slice(0, _WITHHELD))
    best = side.start + int(total[side].argmax())
    against = other.start + int(total[other].argmax())
    pulls = sorted(model.known(found), key=lambda entry: -entry[2] * (model.weights[entry[1], best] - model.weights[entry[1], against]))
    return Weighed(LEARNED[best], tuple(name for name, _, _ in pulls[:3]))


@cache
def learned() -> Linear:
    """The weights shipped with the package; their classes are ``LEARNED``."""
    return read_linear(FILE)


@cache
def unlearned() -> frozenset[str]:
    """The languages that the weights have learned nothing of. The default language has no feature of its own."""
    return frozenset(language.name for language in languages() if language.code != DEFAULT).difference(learned().rows)


def features(answer: str, prompt: str | None, outcome: Outcome, rule: str) -> dict[str, float]:
    """The features of an answer; ``outcome`` and ``rule`` are what the rules found."""
    asked, text = plain(prompt or ""), plain(own_voice(answer))
    known = _words()
    tokens, theirs = known.token.findall(text), frozenset(known.token.findall(asked))
    language = language_of(text)
    spaced = language.writing.is_spaced
    words = _masked_words(tokens, theirs, known.common[language.code]) if spaced else _masked_characters(text, asked, language)
    sizes = range(1, language.phrases.grams + 1)
    found: dict[str, float] = dict.fromkeys(_grams(words, sizes, ""), 1.0)
    found |= dict.fromkeys(_grams(["^", *words[:REACH]], sizes, "opens: "), 1.0)
    found |= dict.fromkeys(_grams([*words[-REACH:], "$"], (1, 2), "ends: "), 1.0)
    found |= _form(answer, text, tokens, theirs)
    found |= {language.name: float(language.code != DEFAULT), "asks: ?": float(asked.endswith("?")), f"rules: {outcome}": 1.0}
    if outcome != "answered":
        found[f"rule: {rule}"] = 1.0
    return {name: value for name, value in found.items() if value}


def _form(answer: str, text: str, tokens: Sequence[str], theirs: frozenset[str]) -> dict[str, float]:
    """Length, questions, figures, names, lists, quotes, first and second person, and overlap with the prompt."""
    n, known = max(len(tokens), 1), _words()
    return {
        "shorter than 8": float(n < 8),
        "shorter than 16": float(n < 16),
        "shorter than 32": float(n < 32),
        "longer than 60": float(n > 60),
        "sentences": min(len(sentences(text)), 6) / 6,
        "ends with a question": float(text.endswith("?")),
        "questions": min(text.count("?"), 3) / 3,
        "figures": min(len(re.findall(r"\d+", answer)), 4) / 4,
        "names": min(len(_NAME.findall(answer)), 5) / 5,
        "a list": float(_LIST.search(answer) is not None),
        "code": float("```" in answer),
        "quotes": float(any(mark in answer for mark in '"“「')),
        "of the prompt": len(theirs.intersection(tokens)) / max(len(theirs), 1),
        "new words": sum(token not in theirs for token in tokens) / n,
        "I": 10 * sum(token in known.first_person for token in tokens) / n,
        "you": 10 * sum(token in known.second_person for token in tokens) / n,
        "cut": float(known.ended.search(text) is None),
    }


def _masked_words(tokens: Sequence[str], theirs: frozenset[str], common: frozenset[str]) -> list[str]:
    """The tokens, with the prompt's content words and all numbers masked: the topic of a text says nothing about its outcome."""
    return [REPEATED if t in theirs and t not in common and t.isalpha() else "0" if t.isdigit() else t for t in tokens]


def _masked_characters(text: str, asked: str, language: Language) -> list[str]:
    """The characters, with each run of two or more that the prompt contains masked by one symbol."""
    pairs = {asked[i : i + 2] for i in range(len(asked) - 1)}
    covered = [False] * len(text)
    for i in range(len(text) - 1):
        if text[i : i + 2] in pairs:
            covered[i] = covered[i + 1] = True
    is_letter = letters_pattern(language).match
    masked = [REPEATED if hidden and is_letter(char) else char for char, hidden in zip(text, covered, strict=True) if not char.isspace()]
    return [char for i, char in enumerate(masked) if char != REPEATED or not i or masked[i - 1] != REPEATED]


def _grams(tokens: Sequence[str], sizes: Sequence[int], before: str) -> Iterator[str]:
    for size in sizes:
        for start in range(len(tokens) - size + 1):
            yield before + " ".join(tokens[start : start + size])
