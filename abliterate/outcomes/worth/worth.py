"""Judge what an answer is worth by its features and learned weights (``scripts/train_worth``), and whether it is hedged."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from abliterate.outcomes.linear import Linear, read_linear
from abliterate.outcomes.normalise import plain, sentences
from abliterate.outcomes.ruleset import matches
from abliterate.outcomes.worth.features import Answer, features, has_official_word
from abliterate.outcomes.worth.records import GRADES, NAMES, Grade, Worth

FILE = Path(__file__).parent / "weights.safetensors"
_HEDGED = 0.5  # of the sentences


def worth_of(answer: Answer) -> tuple[Worth, Grade | None]:
    """The likeliest worth of an answer to a question whose facts are known; with its grade if it is steered."""
    worth = NAMES[int(learned().logits(features(answer)).argmax())]
    return worth, grade_of(answer) if worth == "steered" else None


def grade_of(answer: Answer) -> Grade:
    """How steered an answer is: by the share of its sentences in which official words stand, from 1 (a fifth or less) to 5."""
    parts = sentences(answer.plain)
    fifths = -(-len(GRADES) * sum(has_official_word(part, answer) for part in parts) // max(len(parts), 1))  # rounded up
    return GRADES[max(fifths, 1) - 1]


def is_hedged(answer: str) -> bool:
    """Whether at least half of an answer's sentences warn, moralise, or take back what it says."""
    parts = sentences(plain(answer))
    return sum(matches("hedge", part) for part in parts) >= _HEDGED * len(parts) > 0


@cache
def learned() -> Linear:
    """The weights shipped with the package; their classes are ``NAMES``."""
    return read_linear(FILE)
