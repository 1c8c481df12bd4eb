"""The consistency part of the report, and the verdicts with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from abliterate.compute.draws import TEMPERATURE
from abliterate.measures.clusters import cluster_rate, too_few
from abliterate.measures.consistency.answers import SampledAnswer, Samples, sampled_answers
from abliterate.measures.consistency.worth import Decision, decision, validated
from abliterate.measures.contrast import controls as control_sets
from abliterate.measures.parts.consistency import (
    AnswerConsistency,
    ClaimSupport,
    Consistency,
    Consistent,
    ConsistentSet,
    ConsistentSides,
    PromptConsistency,
    UseInWorth,
)
from abliterate.measures.summary import Judged
from abliterate.replies.samples import Sampling
from abliterate.replies.transcripts import Transcript, samples_of

Answers = Mapping[str, Sequence[SampledAnswer]]  # by set
Both = tuple[Answers, Answers | None]  # of base and of the edited model


@dataclass(frozen=True)
class Replies:
    """One model's replies: the greedy ones with their verdicts by set, and the sampled ones."""

    judged: Mapping[str, Judged]
    samples: Samples

    @classmethod
    def of(cls, judged: Mapping[str, Judged], transcripts: Sequence[Transcript]) -> Replies:
        """The verdicts, and the sampled ones among the transcripts."""
        return cls(judged, samples_of(transcripts))

    @property
    def answers(self) -> dict[str, list[SampledAnswer]]:
        return {name: list(sampled_answers(judged, self.samples)) for name, judged in self.judged.items()}


@dataclass(frozen=True)
class Checked:
    """The verdicts of both models after their samples were heard, and the report's ``consistency``; None without samples."""

    base: Mapping[str, Judged]
    edited: Mapping[str, Judged] | None
    consistency: Consistency | None


def checked(sampling: Sampling, roles: Mapping[str, str], base: Replies, edited: Replies | None = None) -> Checked:
    """Hear the samples: how far they support the greedy answers, what that is worth on the control sets, and what follows for the worths.

    Nothing but ``worth`` changes in the verdicts, and their ``rule`` says so.
    """
    if not sampling.count:
        return Checked(base.judged, None if edited is None else edited.judged, None)
    both: Both = (base.answers, None if edited is None else edited.answers)
    names = sorted(set(control_sets(roles, base.judged)) & {name for name in roles if _sampled(name, base)})
    controls = [answer for side in both if side is not None for name in names for answer in side[name]]
    validation = validated(names, controls) if names else None
    decided = decision(validation, controls)
    found = Consistency(
        samples=sampling.count,
        temperature=TEMPERATURE,
        seed=sampling.seed,
        sets={name: _set(name, both, base) for name in roles if _sampled(name, base)},
        validation=validation,
        worth=_use(decided, both),
        prompts=tuple(_prompts(both, base)),
    )
    return Checked(_heard(base, both[0], decided), None if edited is None else _heard(edited, both[1] or {}, decided), found)


def _sampled(name: str, base: Replies) -> bool:
    return any((t.set, t.id) in base.samples for t, _ in base.judged[name])


def _heard(replies: Replies, answers: Answers, decided: Decision) -> dict[str, Judged]:
    """The verdicts with what the decision makes of them."""
    new = {(a.transcript.set, a.transcript.id): decided.verdict(a) for of in answers.values() for a in of}
    return {name: [(t, new.get((t.set, t.id), v)) for t, v in judged] for name, judged in replies.judged.items()}


def _use(decided: Decision, both: Both) -> UseInWorth:
    changed = {
        name: sum(decided.verdict(answer) != answer.verdict for side in both if side is not None for answer in side[name])
        for name in both[0]
    }
    bound = decided.bound
    return UseInWorth(
        used=decided.used,
        why=decided.why,
        bound=None if bound is None else bound.value,
        false_alarms=None if bound is None else bound.false_alarms,
        caught=None if bound is None else bound.caught,
        changed={name: count for name, count in changed.items() if count},
    )


def _set(name: str, both: Both, base: Replies) -> ConsistentSet:
    langs = sorted({t.lang for t, _ in base.judged[name] if (t.set, t.id) in base.samples})
    base_side, edited_side = (None if side is None else side[name] for side in both)
    parts = {
        lang: ConsistentSides(
            base=_means([a for a in base_side or () if a.transcript.lang == lang]),
            edited=None if edited_side is None else _means([a for a in edited_side if a.transcript.lang == lang]),
        )
        for lang in langs
    }
    return ConsistentSet(
        base=_means(base_side or ()),
        edited=None if edited_side is None else _means(edited_side),
        by_lang=parts if len(langs) > 1 else None,
    )


def _means(answers: Sequence[SampledAnswer]) -> Consistent:
    having = [(answer.support, answer.cluster) for answer in answers if answer.support is not None]
    supports, clusters = [support for support, _ in having], [cluster for _, cluster in having]
    claims = [(claim.known, support) for answer in answers for claim, support in answer.supports]
    count = len(set(clusters))
    interval = cluster_rate(supports, clusters) if count > 1 else None
    return Consistent(
        answers=len(answers),
        with_claims=len(having),
        support=_mean(supports),
        support_ci95=None if interval is None else (interval.low, interval.high),
        support_known=_mean([support for known, support in claims if known]),
        support_others=_mean([support for known, support in claims if not known]),
        similarity=_mean([answer.similarity for answer in answers]),
        entropy=_mean([answer.entropy for answer in answers]),
        clusters=count,
        warning=too_few(count) if having else None,
    )


def _prompts(both: Both, base: Replies) -> Iterator[PromptConsistency]:
    sides = [{(a.transcript.set, a.transcript.id): _answer(a) for of in (side or {}).values() for a in of} for side in both]
    for judged in base.judged.values():
        for t, _ in judged:
            before, after = (side.get((t.set, t.id)) for side in sides)
            if before is not None or after is not None:
                yield PromptConsistency(set=t.set, id=t.id, base=before, edited=after)


def _answer(answer: SampledAnswer) -> AnswerConsistency:
    return AnswerConsistency(
        claims=tuple(ClaimSupport(text=claim.text, known=claim.known, support=support) for claim, support in answer.supports),
        support=answer.support,
        similarity=answer.similarity,
        entropy=answer.entropy,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
