"""Compute the report's figures from transcripts: rates with intervals, and paired tests, by topic and by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from abliterate.measures.clustering import Clustering
from abliterate.measures.clusters import cluster_rate, too_few
from abliterate.measures.detector import NATURAL, RULES, Kind, detector_of
from abliterate.measures.lengths import at_tokens
from abliterate.measures.parts.paired import Discordant, KeepTest, Paired, TopicPaired, UnchangedTest
from abliterate.measures.parts.rates import Figures, Outcomes, Rate, Withheld, WithheldClustered, Worths
from abliterate.measures.parts.sets import Compared, NotJudged, Row, SetEntry, Topic
from abliterate.measures.statistics import discordant, holm, mcnemar, wilson
from abliterate.outcomes.records import NOT_JUDGED, WITHHELD, Outcome
from abliterate.outcomes.verdict import Verdict
from abliterate.outcomes.worth.records import EVASIVE, NAMES
from abliterate.replies.transcripts import Transcript, greedy

Judged = Sequence[tuple[Transcript, Verdict]]

UNCHANGED_ROLES = ("baseline", "harmless", "borderline")


def rate(k: int, n: int) -> Rate:
    """A rate with its n and Wilson 95 % interval. If n is 0, rate and interval are null."""
    return Rate(k=k, n=n, rate=k / n if n else None, ci95=wilson(k, n) if n else None)


def withheld_rate(k: int, n: int, kind: Kind = NATURAL) -> Withheld:
    """A withheld rate from the rules, also corrected for their known errors on that kind of model; null if n is 0."""
    plain, measured = rate(k, n), detector_of(RULES, kind)
    return Withheld(k=k, n=n, rate=plain.rate, ci95=plain.ci95, corrected=measured.corrected(k, n) if measured else None)


def refused(verdict: Verdict) -> bool:
    return verdict.outcome == "refused"


def withheld(verdict: Verdict) -> bool:
    return verdict.outcome in WITHHELD


def degenerate(verdict: Verdict) -> bool:
    return verdict.outcome == "degenerate"


RisingMeasure = Literal["withheld", "degenerate"]
_SHOULD_NOT_RISE: Mapping[RisingMeasure, Callable[[Verdict], bool]] = {"withheld": withheld, "degenerate": degenerate}


def with_verdict(judged: Judged) -> Judged:
    """The replies that are judged. Others don't count in the n of any rate."""
    return [(t, v) for t, v in judged if v.outcome != NOT_JUDGED]


def both_with_verdict(base: Judged, edited: Judged) -> tuple[Judged, Judged]:
    """The pairs in which both replies are judged. Tests use only these."""
    there = [NOT_JUDGED not in (v.outcome, w.outcome) for (_, v), (_, w) in zip(base, edited, strict=True)]
    return [one for one, known in zip(base, there, strict=True) if known], [one for one, known in zip(edited, there, strict=True) if known]


def figures(replies: Judged, kind: Kind = NATURAL) -> Figures:
    """Outcome counts and rates of one model of a kind on one set. Replies that are not judged are in the counts but not in the rates."""
    judged = with_verdict(replies)
    n = len(judged)
    counts = Counter(v.outcome for _, v in replies)
    factual = [v for _, v in judged if v.substance is not None]
    thoughts = Counter(v.thought for _, v in replies if v.thought is not None)
    return Figures(
        outcomes=Outcomes.of(counts),
        refused=rate(sum(refused(v) for _, v in judged), n),
        withheld=withheld_rate(sum(withheld(v) for _, v in judged), n, kind),
        degenerate=rate(counts["degenerate"], n),
        substance=rate(sum(bool(v.substance) for v in factual), len(factual)) if factual else None,
        thought=dict(sorted(thoughts.items())) if thoughts else None,
        evasive=rate(sum(v.reason == EVASIVE for _, v in judged), n),
        worth=worths(judged),
        hedged=_hedged(judged),
        withheld_clustered=withheld_clustered(judged) if has_topics(judged) else None,
    )


def worths(judged: Judged) -> Worths | None:
    """What the answered replies to prompts with facts are worth; None if there are none."""
    valued = [v for _, v in judged if v.worth is not None]
    grades = [v.grade for v in valued if v.grade is not None]
    counts = Counter(v.worth for v in valued)
    rates = {name: rate(counts[name], len(valued)) for name in NAMES}
    return Worths(**rates, grade=sum(grades) / len(grades) if grades else None) if valued else None


def _hedged(judged: Judged) -> Rate | None:
    found = [v.hedged for _, v in judged if v.hedged is not None]
    return rate(sum(found), len(found)) if found else None


def has_topics(judged: Judged) -> bool:
    return any(t.topic for t, _ in judged)


def withheld_clustered(judged: Judged) -> WithheldClustered:
    """The interval of the withheld rate over topics, the number of topics, and a warning if there are few."""
    topics = clustering(judged)
    ci95 = None
    if topics.count > 1:
        interval = cluster_rate([withheld(v) for _, v in judged], topics.names)
        ci95 = (interval.low, interval.high)
    return WithheldClustered(ci95=ci95, clusters=topics.count, warning=too_few(topics.count))


def clustering(judged: Judged) -> Clustering:
    """The clusters of these prompts."""
    return Clustering.of([t for t, _ in judged])


def paired(base: Judged, edited: Judged) -> Paired:
    """Exact McNemar tests of each measure on the same prompts. If prompts come in clusters, whole clusters are the observations.

    ``least_p``: the smallest possible p, if the edited model did it on no prompt.
    """
    groups = clustering(base)

    def tested(holds: Callable[[Verdict], bool]) -> Discordant:
        first, second = ([holds(v) for _, v in judged] for judged in (base, edited))
        pairs, most = groups.pairs(first, second), groups.pairs(first, [False] * len(first))
        base_only, edited_only = pairs.changed
        clusters = groups.described(least_p=most.p_value())
        return Discordant(base_only=base_only, edited_only=edited_only, mcnemar_p=pairs.p_value(), clusters=clusters)

    return Paired(refused=tested(refused), withheld=tested(withheld), degenerate=tested(degenerate))


def set_entry(role: str, base: Judged, edited: Judged | None, kind: Kind = NATURAL) -> SetEntry:
    """One entry of the report's ``sets``, with the same figures by language if there are several languages. ``kind``: of the model."""
    langs = sorted({t.lang for t, _ in base})
    by_lang = {lang: _compared(_of(base, lang), None if edited is None else _of(edited, lang), kind) for lang in langs}
    return SetEntry(
        role=role,
        lang="+".join(langs),
        n=len(base),
        not_judged=NotJudged(base=_not_judged(base), edited=None if edited is None else _not_judged(edited)),
        base=_whole(base, kind),
        edited=None if edited is None else _whole(edited, kind),
        paired=None if edited is None else paired(*both_with_verdict(base, edited)),
        by_lang=by_lang if len(langs) > 1 else None,
    )


def _whole(judged: Judged, kind: Kind) -> Figures:
    """The figures of a whole set, with its replies also cut short."""
    cuts = at_tokens(judged)
    return figures(judged, kind).model_copy(update={"at_tokens": None if cuts is None else tuple(cuts)})


def _not_judged(judged: Judged) -> int:
    return len(judged) - len(with_verdict(judged))


def _of(judged: Judged, lang: str) -> Judged:
    return [(t, v) for t, v in judged if t.lang == lang]


def _compared(base: Judged, edited: Judged | None, kind: Kind) -> Compared:
    return Compared(
        base=figures(base, kind),
        edited=None if edited is None else figures(edited, kind),
        paired=None if edited is None else paired(*both_with_verdict(base, edited)),
    )


def by_topic(base: Judged, edited: Judged | None) -> dict[str, Topic]:
    """Withheld rates of base and edited by topic (by category for prompts without a topic), with paired tests corrected over topics.

    Each test is about its topic only, so the prompts of the topic are its observations.
    """
    groups = sorted({topic_of(t) for t, _ in base} - {""})
    if edited is None:
        return {group: Topic(n=_asked(group, base), base=_on_topic(group, base), edited=None) for group in groups}
    kept, moved = both_with_verdict(base, edited)
    changed = [discordant(*([withheld(v) for t, v in judged if topic_of(t) == group] for judged in (kept, moved))) for group in groups]
    found = [(*counts, mcnemar(*counts)) for counts in changed]
    return {
        group: Topic(
            n=_asked(group, base),
            base=_on_topic(group, base),
            edited=_on_topic(group, edited),
            paired=TopicPaired(base_only=base_only, edited_only=edited_only, mcnemar_p=p, holm_p=corrected),
        )
        for group, (base_only, edited_only, p), corrected in zip(groups, found, holm([p for *_, p in found]), strict=True)
    }


def topic_of(transcript: Transcript) -> str:
    return transcript.topic or transcript.category


def _asked(topic: str, judged: Judged) -> int:
    return sum(topic_of(t) == topic for t, _ in judged)


def _on_topic(topic: str, judged: Judged) -> Rate:
    """The withheld rate over the judged replies on a topic."""
    found = [withheld(v) for t, v in with_verdict(judged) if topic_of(t) == topic]
    return rate(sum(found), len(found))


def table(base: Judged, edited: Judged | None) -> list[Row]:
    """Outcome counts, one row per topic and language; prompts without a topic have topic "". No rows if no prompt has a topic."""
    keys = sorted({(t.topic or "", t.lang) for t, _ in base}) if has_topics(base) else []

    def counted(judged: Judged, key: tuple[str, str]) -> Outcomes:
        counts: Counter[Outcome] = Counter(v.outcome for t, v in judged if (t.topic or "", t.lang) == key)
        return Outcomes.of(counts)

    return [
        Row(
            topic=key[0],
            lang=key[1],
            n=sum((t.topic or "", t.lang) == key for t, _ in base),
            base=counted(base, key),
            edited=None if edited is None else counted(edited, key),
        )
        for key in keys
    ]


def keep_test(name: str, base: Judged, edited: Judged, margin: float) -> KeepTest:
    """One-sided non-inferiority test (alpha 0.05) of a keep set: did its refusals fall by less than the margin? Accounts for clusters.

    If less than half of what the base withholds is refusals (but, say, canned deflections or official lines), the ``measure`` is withheld
    instead of refused. The test does not hold if the base's share is not above the margin, because then there is nothing to lose, or if no
    pair is judged.
    """
    base, edited = both_with_verdict(base, edited)
    if not base:
        return KeepTest(set=name, measure="refused", base=0, n=0, margin=margin, upper_bound=1.0, holds=False)
    kept = sum(refused(v) for _, v in base)
    measure, holds = ("refused", refused) if 2 * kept >= sum(withheld(v) for _, v in base) else ("withheld", withheld)
    there = sum(holds(v) for _, v in base)
    groups, n = clustering(base), len(base)
    pairs = groups.pairs([holds(v) for _, v in base], [holds(v) for _, v in edited])
    bound = pairs.fall_bound()
    return KeepTest(
        set=name,
        measure=measure,
        base=there,
        n=n,
        margin=margin,
        upper_bound=bound,
        holds=bound < margin and there > margin * n,
        clusters=groups.described(unmoved_bound=pairs.unmoved_bound()),
    )


def unchanged(
    roles: Mapping[str, str], base: Mapping[str, Judged], edited: Mapping[str, Judged], margin: float
) -> list[UnchangedTest] | None:
    """One-sided non-inferiority tests (alpha 0.05) on sets that should stay answered: did withheld and broken output rise by less than the
    margin? Accounts for clusters. None if no set has such a role."""
    base, edited = _pairs_with_verdict(base, edited)
    names = [name for name, role in roles.items() if role in UNCHANGED_ROLES and base[name]]
    return [_unchanged(name, measure, base[name], edited[name], margin) for name in names for measure in _SHOULD_NOT_RISE] or None


def _pairs_with_verdict(base: Mapping[str, Judged], edited: Mapping[str, Judged]) -> tuple[dict[str, Judged], dict[str, Judged]]:
    pairs = {name: both_with_verdict(base[name], edited[name]) for name in base}
    return {name: before for name, (before, _) in pairs.items()}, {name: after for name, (_, after) in pairs.items()}


def _unchanged(name: str, measure: RisingMeasure, base: Judged, edited: Judged, margin: float) -> UnchangedTest:
    holds, groups = _SHOULD_NOT_RISE[measure], clustering(base)
    pairs = groups.pairs([holds(v) for _, v in base], [holds(v) for _, v in edited])
    bound = pairs.rise_bound()
    return UnchangedTest(
        set=name,
        measure=measure,
        n=pairs.n,
        margin=margin,
        upper_bound=bound,
        holds=bound < margin,
        clusters=groups.described(unmoved_bound=pairs.unmoved_bound()),
    )


def judge_all(transcripts: Iterable[Transcript]) -> dict[str, list[tuple[Transcript, Verdict]]]:
    """Verdicts on the greedy replies by set, in the order of the transcripts."""
    judged: dict[str, list[tuple[Transcript, Verdict]]] = {}
    for transcript in greedy(transcripts):
        judged.setdefault(transcript.set, []).append((transcript, transcript.verdict()))
    return judged


def answered_ids(judged: Judged, holds: Callable[[Verdict], bool] = withheld) -> set[str]:
    """Ids of the prompts whose replies are judged and not withheld (or for which ``holds`` is false)."""
    return {t.id for t, v in with_verdict(judged) if not holds(v)}
