"""A language as one record: how it is told, written, judged and measured. ``languages`` reads them, a file each (``en.toml``)."""

from __future__ import annotations

import tomllib
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from abliterate.files import Count, Number, Record, Several, Share

FOLDER = Path(__file__).parent
DEFAULT = "en"  # the language of what no other one claims; its patterns, rules and prose come first

Words = Annotated[str, Field(pattern=r"^\S.*\S$|^\S?$")]  # with a space between two of them


class Respelled(Record):
    """Letters ``of`` a spelling that the patterns aren't written in, and those that they are read as."""

    of: str
    to: str


class Writing(Record):
    """How it is written.

    ``units``: what is counted in a text and compared with its prompt. A language of characters has no spaces between its words.
    ``letters``: the inside of a regular expression's brackets, for lower case. ``ends``: the marks that end a sentence.
    ``characters_a_word``: about how many characters make a word, where those are the units.
    """

    units: Literal["words", "characters"]
    letters: str
    ends: str
    characters_a_word: Number = 1
    respelled: Respelled | None = None

    @cached_property
    def is_spaced(self) -> bool:
        """Whether spaces stand between words."""
        return self.units == "words"


class Recognition(Record):
    """How a text in it is told: by its letters, if it gives a share of them (``text``), else by its small ``words``.

    ``text``: the least share of a text's letters. ``sentence``: the share in a sentence that is in this language: of its letters, more than
    that; of its words, at least that.
    """

    text: Share | None = None
    sentence: Share
    words: Words = ""

    @cached_property
    def small_words(self) -> frozenset[str]:
        return frozenset(self.words.split())


class Planning(Record):
    """So many ``tokens`` of a large vocabulary stand for so many ``characters``."""

    tokens: Number
    characters: Number


class Reach(Record):
    """Longest texts in characters: a first sentence that doesn't stand alone (``opening``), an answer that is looked at as a whole
    (``short``), and one whose phrases are counted (``count``)."""

    opening: Count
    short: Count
    count: Count


class Repeated(Record):
    """The least share of distinct n-grams."""

    n: Count
    distinct: Share


class OpenStatement(Record):
    """A statement of ``most`` units, ``share`` of them the prompt's, that leaves the question word standing, ``unless`` the pattern
    matches."""

    most: Count
    share: Share
    unless: str


class Broken(Record):
    """The bounds of broken output. ``function_words``: words, or characters, that are no news in an answer."""

    short_text: Repeated
    long_text: Repeated
    function_words: Words
    open_statement: OpenStatement | None = None


class Phrases(Record):
    """What the learned weights look at: n-grams of up to ``grams`` units.

    ``common``: words that say nothing of the topic, so they are seen also where the prompt has them. ``first_person``: what the model calls
    itself; ``second_person``: what it calls the reader.
    """

    grams: Count
    common: Words = ""
    first_person: Words
    second_person: Words


class WrittenRule(Record):
    """A rule as it is written; ``outcomes.toml`` says what its keys mean."""

    name: str
    outcome: str
    where: Literal["first", "opening", "short", "early", "all", "most", "count"]
    pattern: str | Several[str]
    rank: Count = 1
    least: Count = 1
    unless: str | None = None
    prompt: str | None = None
    unless_prompt: str | None = None


class Prose(Record):
    """Ordinary paragraphs, along which drift is measured."""

    texts: Several[str]


class WorkedExample(Record):
    """A question of general knowledge with its answer in a few words."""

    question: str
    answer: str


class Eliciting(Record):
    """What ``--elicit`` writes around a question and a fact, and how it tells the kinds of facts.

    ``lead_in``: the beginning of an answer that leads to a fact. ``question`` and ``answer``: the marks before a question and an answer
    without a chat template. ``neutral``: a question that asks for nothing in particular. ``dates``, ``numbers``: patterns for lower case.
    ``examples``: unrelated to every bundled set.
    """

    lead_in: str
    question: str
    answer: str
    neutral: str
    dates: str
    numbers: str
    examples: Several[WorkedExample]


class Language(Record):
    """A language.

    ``lead_in``: a pattern of the words before what a sentence says. ``part``: abbreviations in the patterns of its file. ``shared``: its
    share of the patterns that all languages have in common.
    """

    code: str
    name: str
    lead_in: str
    writing: Writing
    recognition: Recognition
    planning: Planning
    reach: Reach
    broken: Broken
    phrases: Phrases
    part: dict[str, str]
    shared: dict[str, str]
    rules: Annotated[Several[WrittenRule], Field(alias="rule")]
    prose: Prose = Prose(texts=())
    elicitation: Eliciting | None = None

    @property
    def eliciting(self) -> Eliciting:
        """What it writes around questions and facts; the default language's if its file doesn't say."""
        own = self.elicitation or languages()[0].elicitation
        assert own is not None
        return own


@cache
def languages() -> tuple[Language, ...]:
    """Every language: the default, then the others by their codes."""
    found = [_read(file) for file in FOLDER.glob("*.toml")]
    return tuple(sorted(found, key=lambda language: (language.code != DEFAULT, language.code)))


@cache
def language(code: str) -> Language:
    """The language of this code; the default if the program doesn't know it."""
    return next((each for each in languages() if each.code == code), languages()[0])


def _read(file: Path) -> Language:
    return Language(code=file.stem, **tomllib.loads(file.read_text(encoding="utf-8")))
