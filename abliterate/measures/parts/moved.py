"""How far the edited model moved: drift, random directions, distance to a reference, benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from abliterate.files import Count, Interval, May, Number, Record, Several
from abliterate.measures.parts.rates import Rate

_FIRST = "KL(base‖edited) of the first token."
_ALONG = "KL(base‖edited) along the base's own replies, per token."
_ANSWERED = " Only prompts that base does not withhold."
_PROSE, _OWN = "Cross-entropy of prose.", "Cross-entropy of the base's own replies."
_CLOSING = "Models that think: log-odds of closing the thought immediately."
_REFERENCE_FIRST = "The same for the first token of the reference's reply."


class Drift(Record):
    """How far the edited model moved on harmless prompts, nats."""

    set: str = Field(description="The set of harmless prompts.")
    n: Count = Field(description="Number of prompts.")
    n_answered: Count = Field(description="Prompts that base does not withhold.")
    kl_first_token: Number | None = Field(description=_FIRST)
    kl_first_token_ci95: Interval | None = Field(description="Interval of the mean, with whole topics resampled.")
    kl_first_token_answered: Number | None = Field(description=_FIRST + _ANSWERED)
    kl_first_token_answered_ci95: Interval | None = Field(description="Its interval.")
    kl_sequence: Number | None = Field(description=_ALONG)
    kl_sequence_ci95: Interval | None = Field(description="Its interval.")
    kl_sequence_answered: Number | None = Field(description=_ALONG + _ANSWERED)
    kl_sequence_answered_ci95: Interval | None = Field(description="Its interval.")
    ce_base: Number | None = Field(description=_PROSE)
    ce_edited: Number | None = Field(description=_PROSE)
    own_base: Number | None = Field(description=_OWN)
    own_edited: Number | None = Field(description=_OWN)
    suppression_base: Number | None = Field(default=None, description=_CLOSING)
    suppression_edited: Number | None = Field(default=None, description=_CLOSING)

    def mean(self, name: str) -> tuple[float, Interval] | None:
        """A KL with its interval; None if it was not measured."""
        value: float | None = getattr(self, name)
        bounds: Interval | None = getattr(self, f"{name}_ci95")
        return None if value is None or bounds is None else (value, bounds)


class SameFirst(Record):
    """Prompts that base withholds whose likeliest first token (of the thought, if the model thinks) is still that of base."""

    edited: Rate = Field(description="With the edit.")
    random: Several[Rate] = Field(description="With the edit along each random direction.")


class Moved(Record):
    """Mean KL(base‖changed) over the harmless test prompts, nats."""

    edited: Number | None = Field(description="With the edit; null if not finite.")
    random: Several[Number | None] = Field(description="With the edit along each random direction; null if not finite.")


class Controls(Record):
    """This edit beside edits along random directions, as many, as strong and in the same places, all by hooks on base: controls.json."""

    seeds: Several[int] = Field(description="Seed of each random direction.")
    set: Several[str] = Field(description="The target sets.")
    n: Count = Field(description="Number of their test prompts.")
    n_withheld: Count = Field(description="How many of them base withholds.")
    same_first: SameFirst
    kl_first_token: Moved


class Distance(Record):
    """The distance to the reference on one set, before and after the edit: nats per token along the reference's own greedy replies of 64
    tokens, mean over prompts."""

    role: str = Field(description="Role of the set.")
    n: Count = Field(description="Number of prompts.")
    kl_base: Number | None = Field(description="Mean KL(reference‖base).")
    kl_edited: Number | None = Field(description="Mean KL(reference‖edited).")
    gone: Number | None = Field(description="1 - kl_edited / kl_base; null where kl_base is below 0.01.")
    kl_first_base: Number | None = Field(default=None, description=_REFERENCE_FIRST)
    kl_first_edited: Number | None = Field(default=None, description=_REFERENCE_FIRST)
    gone_first: Number | None = Field(default=None, description=_REFERENCE_FIRST)
    agree_base: Rate = Field(description="Replies of base that begin like the reference's.")
    agree_edited: Rate = Field(description="Replies of the edited model that begin like the reference's.")
    degenerate_reference: May[Rate] = Field(default=None, description="The reference's own broken replies.")


class Recovery(Record):
    """How much of a reference model's behaviour comes back: recovery.json."""

    reference: str = Field(description="Name of the reference model.")
    agree_tokens: Count = Field(default=32, description="How many first tokens of a reply are compared.")
    sets: Mapping[str, Distance] = Field(description="By set.")


class Scored(Record):
    """One metric of a task before and after."""

    base: Number | None = Field(description="Before.")
    edited: Number | None = Field(description="After; null if it was not measured.")


class Benchmarks(Record):
    """Scores of lm-evaluation-harness, before and after the edit: benchmarks.json."""

    harness: str = Field(description="Its name and version.")
    asked: Several[str] = Field(description="The tasks as they were asked for.")
    tasks: Mapping[str, Mapping[str, Scored]] = Field(description="By task and metric.")


class DriftValues(Record):
    """drift.json: figures of each prompt or text, in nats; null where there is none."""

    set: str
    ids: Several[str]
    kl_first_token: Several[Number | None] | None = None
    kl_sequence: Several[Number | None] | None = None
    own_base: Several[Number | None] | None = None
    own_edited: Several[Number | None] | None = None
    ce_base: Several[Number | None] | None = None
    ce_edited: Several[Number | None] | None = None
    suppression_base: Several[Number | None] | None = None
    suppression_edited: Several[Number | None] | None = None

    def values(self, name: str) -> Sequence[float | None]:
        """The figures of this name; empty if they were not measured."""
        found: Sequence[float | None] | None = getattr(self, name)
        return found or ()
