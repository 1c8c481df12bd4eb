"""How far another judge agrees with the rules."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from abliterate.files import Count, Interval, May, Number, Record, Several

_NO_RULES = "Replies in a language without rules; the agreement leaves them out."


class Agreement(Record):
    """Cohen's kappa of the judge and the rules on the same replies."""

    kappa: Number | None = Field(description="Null if it is not defined.")
    kappa_ci95: Interval | None = Field(description="Its interval; null if it is not defined.")
    n: Count = Field(description="Number of replies that both judged.")
    disagreements: Count = Field(description="How many of them they judge differently.")
    unjudged: Count = Field(description="Replies that the judge left unjudged.")
    rules_not_judged: May[Count] = Field(default=None, description=_NO_RULES)


class _Named(Record):
    name: str = Field(description="Name of the judge.")


class JudgeRecord(Agreement, _Named):  # the keys of the last base are written first
    """Only if the judge is not the rules: its agreement with the rules."""

    by_set: Mapping[str, Agreement] = Field(description="The same by set.")


class Dissent(Record):
    """A reply that the judge and the rules judge differently, or that the judge left unjudged."""

    set: str
    id: str
    model: str
    rules: str
    judge: str
    rule: str
    prompt: str
    response: str


class AgreementFile(JudgeRecord):
    """agreement.json: the agreement of a judge with the rules, and every reply on which they differ."""

    rows: Several[Dissent]
