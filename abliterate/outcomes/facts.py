"""Find the known facts of a question in an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from abliterate.outcomes.normalise import letters_of, plain
from abliterate.outcomes.sentences import simplified
from abliterate.prompts.languages.recognition import language_of


def has_fact(answer: str, facts: Sequence[str]) -> bool:
    """Whether the answer contains one of the facts, after normalising; at word boundaries if the script has them."""
    return bool(facts_in(answer, facts))


def facts_in(answer: str, facts: Sequence[str]) -> list[str]:
    """The facts that the answer contains."""
    text = line_of(answer)
    return [fact for fact in facts if occurs(simplified(plain(fact)), text)]


def line_of(text: str) -> str:
    """A text normalised, in one spelling, as one line."""
    return simplified(plain(text, marks=False)).replace("\n", " ")


def occurs(fact: str, text: str) -> bool:
    """Whether a normalised fact stands in a line: at word boundaries, or anywhere if its script has none."""
    if fact not in text or not language_of(fact).writing.is_spaced:
        return fact in text
    edge = f"[^\\W{letters_of(spaced=False)}]"  # a letter or digit, but none that may stand beside another word
    digit = r"(?<!\d[.,])" if fact[:1].isdigit() else ""
    after = r"(?![.,]\d)" if fact[-1:].isdigit() else ""
    return re.search(rf"(?<!{edge}){digit}{re.escape(fact)}(?!{edge}){after}", text) is not None
