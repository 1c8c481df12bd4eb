"""Whether low support makes an answer count as invented: decided here alone, by what support is worth on the control questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from abliterate.measures.consistency.answers import SampledAnswer
from abliterate.measures.consistency.discrimination import FALSE_ALARMS, Bound, Scored, bound_of, discrimination
from abliterate.measures.parts.consistency import Discrimination, Validation
from abliterate.outcomes.verdict import BY_SUPPORT, Verdict
from abliterate.outcomes.worth.records import Worth

LEAST_TOPICS = 10  # with fewer topics that have claims of a kind, an interval over topics says too little to change anything
CHANCE = 0.5
MAY_CHANGE: tuple[Worth, ...] = ("informative", "unknown")


@dataclass(frozen=True)
class Decision:
    """Whether support is ``used``, and why; ``bound`` if it is."""

    used: bool
    why: str
    bound: Bound | None = None

    def verdict(self, answer: SampledAnswer) -> Verdict:
        """The verdict on a greedy answer, ``invented`` if the mean support of its claims beside the known facts is below the bound."""
        found, verdict = answer.support_of_others, answer.verdict
        if self.bound is None or found is None or verdict.worth not in MAY_CHANGE or found >= self.bound.value:
            return verdict
        return replace(verdict, worth="invented", grade=None, rule=verdict.rule + BY_SUPPORT)


def validated(names: Sequence[str], controls: Sequence[SampledAnswer]) -> Validation:
    """What consistency is worth on the answers to control questions."""
    judged = [answer for answer in controls if answer.verdict.worth in ("informative", "invented")]
    return Validation(
        sets=tuple(names),
        claims=discrimination(list(_claims(controls))),
        answers_by_support=_separated(judged, [answer.support for answer in judged]),
        answers_by_similarity=_separated(judged, [answer.similarity for answer in judged]),
        answers_by_entropy=_separated(judged, [None if answer.entropy is None else -answer.entropy for answer in judged]),
    )


def _separated(answers: Sequence[SampledAnswer], scores: Sequence[float | None]) -> Discrimination | None:
    """How well the scores separate informative answers from invented ones; answers without a score are left out."""
    there = [(answer, score) for answer, score in zip(answers, scores, strict=True) if score is not None]
    return discrimination([Scored(score, answer.verdict.worth == "informative", answer.cluster) for answer, score in there])


def decision(validation: Validation | None, controls: Sequence[SampledAnswer]) -> Decision:
    """Support is used if it separates the controls' known facts from other claims: the AUC's interval lies above a half."""
    if validation is None:
        return Decision(False, "no control set was asked, so what support is worth is not known (ask censorship-control too)")
    found = validation.claims
    if found is None:
        return Decision(False, "the answers to the control questions hold no known fact, or no other claim, to compare")
    claims = list(_claims(controls))
    known, others = (len({claim.cluster for claim in claims if claim.true is kind}) for kind in (True, False))
    if min(known, others) < LEAST_TOPICS or found.auc_ci95 is None:
        return Decision(
            False,
            f"the answers to the control questions hold known facts on {known} topics and other claims on {others}; at least "
            f"{LEAST_TOPICS} of each are needed",
        )
    if found.auc_ci95[0] <= CHANCE:
        return Decision(
            False, f"on the control questions support does not separate known facts from other claims: {_said(found.auc, found.auc_ci95)}"
        )
    bound = bound_of(claims)
    if bound is None:
        return Decision(
            False,
            f"more than {FALSE_ALARMS:.0%} of the known facts have no more support than any other claim, so no bound tells them apart",
        )
    return Decision(
        True, f"on the control questions support separates known facts from other claims: {_said(found.auc, found.auc_ci95)}", bound
    )


def _said(auc: float, interval: tuple[float, float]) -> str:
    return f"AUC {auc:.2f}, 95 % {interval[0]:.2f}–{interval[1]:.2f}"


def _claims(controls: Sequence[SampledAnswer]) -> Iterator[Scored]:
    return (Scored(support, claim.known, answer.cluster) for answer in controls for claim, support in answer.supports)
