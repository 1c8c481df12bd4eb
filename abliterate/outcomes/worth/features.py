"""What can be seen of an answer's worth without knowing the world: which known facts it holds, what it claims beside them, and whose words
it uses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from abliterate.outcomes.facts import facts_in, line_of, occurs
from abliterate.outcomes.normalise import letters_of, plain, sentences
from abliterate.outcomes.ruleset import Rule, matches, rules
from abliterate.outcomes.sentences import simplified
from abliterate.prompts.languages.recognition import language_of
from abliterate.prompts.languages.record import DEFAULT, Language, languages

_FIGURE = re.compile(r"\d{1,3}(?:[,，\u00a0\u202f]\d{3})+(?:\.\d+)?(?!\d)|\d+(?:[.,]\d+)*")
_GROUPED = re.compile(r"\d{1,3}(?:[,，\u00a0\u202f]\d{3})+(?:\.\d+)?")  # a number with separators of thousands
_WIDE = {ord("０") + digit: str(digit) for digit in range(10)}
_NAME = re.compile(r"\b[A-Z][\w'’-]+(?:\s+(?:of |the |de |al-)?[A-Z][\w'’-]+)*")
_QUOTED = re.compile(
    "|".join(rf"{begin}[^{end}\n]{{2,60}}{end}" for begin, end in ("“”", "„“", "‘’", '""', "«»", "「」", "『』", "《》", "〈〉"))
)
_ITEM = re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)、])\s")
_SIZE = 2  # n-grams of the official line


@dataclass(frozen=True)
class Answer:
    """An answer to a question whose facts are known. ``official``: the official line on it, if there is one."""

    text: str
    prompt: str
    facts: Sequence[str]
    official: str | None = None

    @cached_property
    def plain(self) -> str:
        return simplified(plain(self.text))

    @cached_property
    def language(self) -> Language:
        return language_of(self.plain)

    @cached_property
    def known(self) -> str:
        """Everything that the answer need not have made up: the question and its facts."""
        return line_of(" ".join([self.prompt, *self.facts]))

    @cached_property
    def known_units(self) -> frozenset[str]:
        return frozenset(_units(self.known, self.language.writing.is_spaced))

    @cached_property
    def held(self) -> list[str]:
        """The facts that it holds."""
        return facts_in(self.text, self.facts)

    @cached_property
    def figures(self) -> list[str]:
        """Its numbers that neither the question nor a fact has, as they stand in it."""
        known = {number_of(found) for found in _figures(" ".join([self.prompt, *self.facts]))}
        found = {number_of(figure): figure for figure in reversed(_figures(_without_items(self.text)))}
        return [figure for number, figure in reversed(found.items()) if number not in known]

    @cached_property
    def names(self) -> list[str]:
        """Its names, and its quoted titles and words, that neither the question nor a fact has; normalised."""
        bare = _QUOTED.sub("", self.text)
        inside = [found for part in _sentences(bare) for found in _NAME.findall(part)[_first_is_usual(part) :]]
        found = dict.fromkeys([*map(_bare, inside), *(line_of(quoted[1:-1]) for quoted in _QUOTED.findall(self.text))])
        return [name for name in found if name and not occurs(name, self.known)]

    @cached_property
    def items(self) -> int:
        """The number of its list items."""
        return len(_ITEM.findall(self.text))


def features(answer: Answer) -> dict[str, float]:
    """The features of an answer, by name; those that are 0 are left out."""
    found = dict(_features(answer))
    return {name: float(value) for name, value in found.items() if value}


def _features(answer: Answer) -> Iterator[tuple[str, float]]:
    text, spaced = answer.plain, answer.language.writing.is_spaced
    units = _units(text, spaced)
    parts = sentences(text)
    held, figures, names = len(answer.held), len(answer.figures), len(answer.names)
    yield "a fact", held > 0
    yield "two facts", held > 1
    yield "figures", min(figures, 4) / 4
    yield "a figure", figures > 0
    yield "names", min(names, 5) / 5
    yield "a name", names > 0
    yield "a list", answer.items > 1
    yield "claims beside facts", held > 0 and figures + names > 0
    yield "claims without facts", held == 0 and figures + names > 0
    yield "no claim", held == 0 and figures + names == 0
    yield "another figure than the facts'", held == 0 and figures > 0 and any(_FIGURE.search(fact) for fact in answer.facts)
    yield "another name than the facts'", held == 0 and names > 0 and any(_NAME.match(fact) for fact in answer.facts)
    yield "share of the facts", held / max(len(answer.facts), 1)
    yield "official words", min(official_words(answer), 4) / 4
    yield "an official word", official_words(answer) > 0
    yield "official sentences", sum(has_official_word(part, answer) for part in parts) / max(len(parts), 1)
    yield "of the official line", _overlap(units, _units(line_of(answer.official or ""), spaced), _units(answer.known, spaced))
    yield "has an official line", answer.official is not None
    yield "honest", matches("honest", text)
    yield "attributed", any(matches("attributed", part) for part in parts)
    yield "sentences", min(len(parts), 5) / 5
    yield "short", len(units) < (15 if spaced else 25)
    yield "new words", sum(unit not in answer.known_units for unit in units) / max(len(units), 1)
    yield f"language: {answer.language.code}", answer.language.code != DEFAULT
    for gram in _grams(answer, units):
        yield gram, 1.0


def official_words(answer: Answer) -> int:
    """How many different stock phrases of official lines it has that the question and the facts lack."""
    return len(official_phrases(answer))


def official_phrases(answer: Answer) -> list[str]:
    """Those phrases, as they stand in the normalised answer."""
    found = dict.fromkeys(phrase for rule in _official() for phrase in _hits(rule, answer.plain))
    return [phrase for phrase in found if phrase not in set(_in_question(answer))]


def _official() -> list[Rule]:
    return [rule for rule in rules() if rule.outcome == "state_line" and rule.where == "count"]


def _hits(rule: Rule, text: str) -> list[str]:
    return [found[0] for found in rule.pattern.finditer(text)]


def _in_question(answer: Answer) -> list[str]:
    return [phrase for rule in _official() for phrase in _hits(rule, answer.known)]


def has_official_word(part: str, answer: Answer) -> bool:
    """Whether a sentence of the answer has a stock phrase of official lines that the question and the facts lack."""
    return any(phrase not in answer.known for rule in _official() for phrase in _hits(rule, part))


def _overlap(units: Sequence[str], official: Sequence[str], known: Sequence[str]) -> float:
    """The share of the official line's n-grams, but for those of the question and the facts, that the answer has."""
    own = set(_pairs(official)) - set(_pairs(known))
    return len(own & set(_pairs(units))) / len(own) if own else 0.0


def _pairs(units: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(units[start:] for start in range(_SIZE)), strict=False)


def _grams(answer: Answer, units: Sequence[str]) -> Iterator[str]:
    """Words, or pairs of characters, that the question and the facts lack: whose words the answer uses."""
    if answer.language.writing.is_spaced:
        yield from {f"w: {unit}" for unit in units if not unit.isdigit() and unit not in answer.known_units}
    else:
        pairs = {"".join(pair) for pair in _pairs(units)}
        yield from {f"w: {pair}" for pair in pairs if pair not in answer.known}


def number_of(figure: str) -> str:
    """A figure without separators of thousands: "5,000" is 5000."""
    return re.sub(r"[,，\u00a0\u202f]", "", figure) if _GROUPED.fullmatch(figure) else figure


def _figures(text: str) -> list[str]:
    return _FIGURE.findall(text.translate(_WIDE))


def _bare(name: str) -> str:
    """A name, normalised, without the function words before it (with a capital where a sentence begins), and without a possessive s."""
    words = line_of(name).removesuffix("'s").split()
    common = _common()
    while words and words[0] in common:
        del words[0]
    return " ".join(words)


@cache
def _common() -> frozenset[str]:
    return frozenset(word for language in languages() for word in language.phrases.common.split())


def _units(text: str, spaced: bool) -> list[str]:
    return re.findall(r"\w+" if spaced else rf"[{letters_of(spaced=False)}]|\w", text)


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?:])\s+|\n+", _without_items(text)) if part.strip()]


def _without_items(text: str) -> str:
    return _ITEM.sub("", text)


def _first_is_usual(sentence: str) -> bool:
    """Whether the first word has a capital only because it begins the sentence."""
    found = _NAME.match(sentence.lstrip(" *"))
    return found is not None and " " not in found[0]
