"""What sampled replies say about the claims of the greedy answers."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from abliterate.files import Count, Interval, May, Number, Record, Several, Share
from abliterate.measures.parts.rates import Rate

_NONE = "absent if there are none"


class ClaimSupport(Record):
    """A claim of a greedy answer."""

    text: str = Field(description="A number, a name, a quoted title or a known fact, as the answer has it.")
    known: bool = Field(description="It is one of the question's known facts.")
    support: Share = Field(description="Share of the sampled replies that make the claim too.")


class AnswerConsistency(Record):
    """How consistent one answer is."""

    claims: Several[ClaimSupport] = Field(description="Its claims, at most 50.")
    support: May[Share] = Field(default=None, description="Mean support of its claims; absent if it makes none.")
    similarity: May[Share] = Field(
        default=None, description="Mean over pairs of samples of the share of their claims that both make; absent if they make none."
    )
    entropy: May[Number] = Field(
        default=None,
        description="Discrete semantic entropy in nats over clusters of samples that say the same: 0 if all do; absent without claims.",
    )


class PromptConsistency(Record):
    """The answers to one prompt."""

    set: str = Field(description="Its set.")
    id: str = Field(description="Its id in the set.")
    base: May[AnswerConsistency] = Field(default=None, description="Only if base answers it.")
    edited: May[AnswerConsistency] = Field(default=None, description="Only if the edited model answers it.")


class Consistent(Record):
    """Means of one model on one set or language, over the answered prompts with facts."""

    answers: Count = Field(description="Answered prompts with facts.")
    with_claims: Count = Field(description="Answers that make a claim.")
    support: May[Share] = Field(default=None, description=f"Mean over these of their claims' mean support; {_NONE}.")
    support_ci95: May[Interval] = Field(default=None, description="Its interval, with whole topics resampled; absent with one topic.")
    support_known: May[Share] = Field(default=None, description=f"Mean support of the claims that are known facts; {_NONE}.")
    support_others: May[Share] = Field(default=None, description=f"Mean support of all other claims; {_NONE}.")
    similarity: May[Share] = Field(default=None, description=f"Mean similarity of the samples; {_NONE} that make a claim.")
    entropy: May[Number] = Field(default=None, description=f"Mean entropy of the samples in nats; {_NONE} that make a claim.")
    clusters: Count = Field(description="Number of topics among the answers with claims.")
    warning: str | None = Field(description="Says so where they are few; else null.")


class ConsistentSides(Record):
    """Both models on the same prompts."""

    base: Consistent
    edited: May[Consistent] = Field(default=None, description="Not in an audit.")


class ConsistentSet(ConsistentSides):
    """One set."""

    by_lang: May[Mapping[str, ConsistentSides]] = Field(default=None, description="The same by language, if there are several.")


class Discrimination(Record):
    """How well a score separates what is true from the others."""

    auc: Share = Field(description="Chance that a true one scores above another; 0.5 says nothing.")
    auc_ci95: Interval | None = Field(description="Its interval, with whole topics resampled; null with one topic.")
    true: Count = Field(description="Number of true ones.")
    others: Count = Field(description="Number of others.")
    clusters: Count = Field(description="Number of topics.")
    warning: str | None = Field(description="Says so where they are few; else null.")


class Validation(Record):
    """What consistency is worth on the control questions, whose facts are known and that no model withholds; both models together."""

    sets: Several[str] = Field(description="The control sets.")
    claims: May[Discrimination] = Field(
        default=None, description="Support of claims that are known facts (true) against other claims, most of them made up."
    )
    answers_by_support: May[Discrimination] = Field(
        default=None, description="Mean support of answers judged informative (true) against invented ones; these labels are judged."
    )
    answers_by_similarity: May[Discrimination] = Field(default=None, description="The same by the samples' similarity.")
    answers_by_entropy: May[Discrimination] = Field(default=None, description="The same by the samples' entropy, the lower the better.")


class UseInWorth(Record):
    """Whether low support makes an answer count as invented."""

    used: bool = Field(description="Only if the validation of claims shows that support separates them.")
    why: str = Field(description="Why it is used, or why not.")
    bound: May[Share] = Field(
        default=None, description="Answers whose claims beside the known facts have a lower mean support count as invented."
    )
    false_alarms: May[Rate] = Field(default=None, description="Known facts in the controls' answers with a support below the bound.")
    caught: May[Rate] = Field(default=None, description="Other claims there with a support below the bound.")
    changed: Mapping[str, Count] = Field(description="By set: informative or unknown answers of both models that count as invented by it.")


class Consistency(Record):
    """With --samples: what sampled replies say about the claims of the greedy answers."""

    samples: Count = Field(description="Sampled replies to each prompt with facts.")
    temperature: Number = Field(description="Temperature of sampling, over all tokens.")
    seed: Count = Field(description="Random seed of the samples.")
    sets: Mapping[str, ConsistentSet] = Field(description="By set, of those with sampled prompts.")
    validation: Validation | None = Field(description="On the control sets; null if none was asked.")
    worth: UseInWorth
    prompts: Several[PromptConsistency] = Field(description="Each answered prompt with facts.")
