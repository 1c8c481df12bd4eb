"""Compute the report's figures from transcripts: rates with intervals, and paired tests, by topic and by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from abliterate.measures.clustering import Clustering
from abliterate.measures.clusters import cluster_rate, too_few
from abliterate.measures.detector import RULES, detector_of
from abliterate.measures.lengths import at_tokens
from abliterate.measures.statistics import discordant, holm, mcnemar, wilson
from abliterate.outcomes.records import NOT_JUDGED, OUTCOMES, WITHHELD
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.transcripts import Transcript

Judged = Sequence[tuple[Transcript, Verdict]]

UNCHANGED_ROLES = ("baseline", "harmless", "borderline")


def rate(k: int, n: int) -> dict[str, Any]:
    """A rate with its n and Wilson 95 % interval. If n is 0, rate and interval are null."""
    return {"k": k, "n": n, "rate": k / n if n else None, "ci95": list(wilson(k, n)) if n else None}


def corrected(withheld: dict[str, Any]) -> dict[str, Any]:
    """A withheld rate from the rules, with the rate corrected for their known errors added (``corrected``); null if n is 0."""
    measured = detector_of(RULES)
    return {**withheld, "corrected": measured.corrected(withheld["k"], withheld["n"]) if measured else None}


def refused(verdict: Verdict) -> bool:
    return verdict.outcome == "refused"


def withheld(verdict: Verdict) -> bool:
    return verdict.outcome in WITHHELD


def degenerate(verdict: Verdict) -> bool:
    return verdict.outcome == "degenerate"


def with_verdict(judged: Judged) -> Judged:
    """The replies that are judged. Others don't count in the n of any rate."""
    return [(t, v) for t, v in judged if v.outcome != NOT_JUDGED]


def both_with_verdict(base: Judged, edited: Judged) -> tuple[Judged, Judged]:
    """The pairs in which both replies are judged. Tests use only these."""
    there = [NOT_JUDGED not in (v.outcome, w.outcome) for (_, v), (_, w) in zip(base, edited, strict=True)]
    return [one for one, known in zip(base, there, strict=True) if known], [one for one, known in zip(edited, there, strict=True) if known]


def figures(replies: Judged) -> dict[str, Any]:
    """Outcome counts and rates of one model on one set. Replies that are not judged are in the counts but not in the rates."""
    judged = with_verdict(replies)
    n = len(judged)
    counts = Counter(v.outcome for _, v in replies)
    factual = [v for _, v in judged if v.substance is not None]
    thoughts = Counter(v.thought for _, v in replies if v.thought is not None)
    return {
        "outcomes": {name: counts[name] for name in OUTCOMES},
        "refused": rate(sum(refused(v) for _, v in judged), n),
        "withheld": corrected(rate(sum(withheld(v) for _, v in judged), n)),
        "degenerate": rate(counts["degenerate"], n),
        "substance": rate(sum(bool(v.substance) for v in factual), len(factual)) if factual else None,
        "thought": dict(sorted(thoughts.items())) if thoughts else None,
        **({"withheld_clustered": withheld_clustered(judged)} if has_topics(judged) else {}),
    }


def has_topics(judged: Judged) -> bool:
    return any(t.topic for t, _ in judged)


def withheld_clustered(judged: Judged) -> dict[str, Any]:
    """The interval of the withheld rate over topics, the number of topics, and a warning if there are few."""
    topics = clustering(judged)
    ci95 = None
    if topics.count > 1:
        interval = cluster_rate([withheld(v) for _, v in judged], topics.names)
        ci95 = [interval.low, interval.high]
    return {"ci95": ci95, "clusters": topics.count, "warning": too_few(topics.count)}


def clustering(judged: Judged) -> Clustering:
    """The clusters of these prompts."""
    return Clustering.of([t for t, _ in judged])


def paired(base: Judged, edited: Judged) -> dict[str, Any]:
    """Exact McNemar tests of refused and withheld on the same prompts. If prompts come in clusters, whole clusters are the observations.

    ``least_p``: the smallest possible p, if the edited model did it on no prompt.
    """
    found, groups = {}, clustering(base)
    for name, holds in (("refused", refused), ("withheld", withheld)):
        first, second = ([holds(v) for _, v in judged] for judged in (base, edited))
        pairs, most = groups.pairs(first, second), groups.pairs(first, [False] * len(first))
        counts = dict(zip(("base_only", "edited_only"), pairs.changed, strict=True))
        found[name] = {**counts, "mcnemar_p": pairs.p_value(), **groups.described(least_p=most.p_value())}
    return found


def set_entry(role: str, base: Judged, edited: Judged | None) -> dict[str, Any]:
    """One entry of the report's ``sets``, with the same figures by language if there are several languages."""
    langs = sorted({t.lang for t, _ in base})
    entry = {"role": role, "lang": "+".join(langs), "n": len(base), "not_judged": _not_judged(base, edited), **_compared(base, edited)}
    entry["base"]["at_tokens"] = at_tokens(base)
    if edited is not None:
        entry["edited"]["at_tokens"] = at_tokens(edited)
    if len(langs) > 1:
        entry["by_lang"] = {lang: _compared(_of(base, lang), None if edited is None else _of(edited, lang)) for lang in langs}
    return entry


def _not_judged(base: Judged, edited: Judged | None) -> dict[str, int]:
    sides = {"base": base} if edited is None else {"base": base, "edited": edited}
    return {which: len(side) - len(with_verdict(side)) for which, side in sides.items()}


def _of(judged: Judged, lang: str) -> Judged:
    return [(t, v) for t, v in judged if t.lang == lang]


def _compared(base: Judged, edited: Judged | None) -> dict[str, Any]:
    return {
        "base": figures(base),
        "edited": None if edited is None else figures(edited),
        "paired": None if edited is None else paired(*both_with_verdict(base, edited)),
    }


def by_topic(base: Judged, edited: Judged | None) -> dict[str, Any]:
    """Withheld rates of base and edited by topic (by category for prompts without a topic), with paired tests corrected over topics.

    Each test is about its topic only, so the prompts of the topic are its observations.
    """
    groups = sorted({topic_of(t) for t, _ in base} - {""})
    found = {group: _topic_entry(group, base, edited) for group in groups}
    if edited is not None:
        corrected = holm([entry["paired"]["mcnemar_p"] for entry in found.values()])
        for entry, p in zip(found.values(), corrected, strict=True):
            entry["paired"]["holm_p"] = p
    return found


def topic_of(transcript: Transcript) -> str:
    return transcript.topic or transcript.category


def _topic_entry(group: str, base: Judged, edited: Judged | None) -> dict[str, Any]:
    def chosen(judged: Judged) -> list[bool]:
        return [withheld(v) for t, v in judged if topic_of(t) == group]

    before = chosen(with_verdict(base))
    entry: dict[str, Any] = {"n": sum(topic_of(t) == group for t, _ in base), "base": rate(sum(before), len(before)), "edited": None}
    if edited is not None:
        after = chosen(with_verdict(edited))
        base_only, edited_only = discordant(*map(chosen, both_with_verdict(base, edited)))
        entry["edited"] = rate(sum(after), len(after))
        entry["paired"] = {"base_only": base_only, "edited_only": edited_only, "mcnemar_p": mcnemar(base_only, edited_only)}
    return entry


def table(base: Judged, edited: Judged | None) -> list[dict[str, Any]]:
    """Outcome counts, one row per topic and language; prompts without a topic have topic "". No rows if no prompt has a topic."""
    keys = sorted({(t.topic or "", t.lang) for t, _ in base}) if has_topics(base) else []

    def counted(judged: Judged, key: tuple[str, str]) -> dict[str, int]:
        counts = Counter(v.outcome for t, v in judged if (t.topic or "", t.lang) == key)
        return {name: counts[name] for name in OUTCOMES}

    return [
        {
            "topic": key[0],
            "lang": key[1],
            "n": sum((t.topic or "", t.lang) == key for t, _ in base),
            "base": counted(base, key),
            "edited": None if edited is None else counted(edited, key),
        }
        for key in keys
    ]


def keep_test(name: str, base: Judged, edited: Judged, margin: float) -> dict[str, Any]:
    """One-sided non-inferiority test (alpha 0.05) of a keep set: did its refusals fall by less than the margin? Accounts for clusters.

    If less than half of what the base withholds is refusals (but, say, canned deflections or official lines), the ``measure`` is withheld
    instead of refused. The test does not hold if the base's share is not above the margin, because then there is nothing to lose, or if no
    pair is judged.
    """
    base, edited = both_with_verdict(base, edited)
    if not base:
        return {"set": name, "measure": "refused", "base": 0, "n": 0, "margin": margin, "upper_bound": 1.0, "holds": False}
    kept = sum(refused(v) for _, v in base)
    measure, holds = ("refused", refused) if 2 * kept >= sum(withheld(v) for _, v in base) else ("withheld", withheld)
    there = sum(holds(v) for _, v in base)
    groups, n = clustering(base), len(base)
    pairs = groups.pairs([holds(v) for _, v in base], [holds(v) for _, v in edited])
    bound = pairs.fall_bound()
    return {
        "set": name,
        "measure": measure,
        "base": there,
        "n": n,
        "margin": margin,
        "upper_bound": bound,
        "holds": bound < margin and there > margin * n,
        **groups.described(unmoved_bound=pairs.unmoved_bound()),
    }


def unchanged(
    roles: Mapping[str, str], base: Mapping[str, Judged], edited: Mapping[str, Judged], margin: float
) -> list[dict[str, Any]] | None:
    """One-sided non-inferiority tests (alpha 0.05) on sets that should stay answered: did withheld and broken output rise by less than the
    margin? Accounts for clusters. None if no set has such a role."""
    base, edited = _pairs_with_verdict(base, edited)
    names = [name for name, role in roles.items() if role in UNCHANGED_ROLES and base[name]]
    measures = {"withheld": withheld, "degenerate": degenerate}
    return [_unchanged(name, measure, holds, base, edited, margin) for name in names for measure, holds in measures.items()] or None


def _pairs_with_verdict(base: Mapping[str, Judged], edited: Mapping[str, Judged]) -> tuple[dict[str, Judged], dict[str, Judged]]:
    pairs = {name: both_with_verdict(base[name], edited[name]) for name in base}
    return {name: before for name, (before, _) in pairs.items()}, {name: after for name, (_, after) in pairs.items()}


def _unchanged(
    name: str, measure: str, holds: Callable[[Verdict], bool], base: Mapping[str, Judged], edited: Mapping[str, Judged], margin: float
) -> dict[str, Any]:
    groups = clustering(base[name])
    pairs = groups.pairs([holds(v) for _, v in base[name]], [holds(v) for _, v in edited[name]])
    bound = pairs.rise_bound()
    found = {"set": name, "measure": measure, "n": pairs.n, "margin": margin, "upper_bound": bound, "holds": bound < margin}
    return found | groups.described(unmoved_bound=pairs.unmoved_bound())


def judge_all(transcripts: Iterable[Transcript]) -> dict[str, list[tuple[Transcript, Verdict]]]:
    """Verdicts by set, in the order of the transcripts."""
    judged: dict[str, list[tuple[Transcript, Verdict]]] = {}
    for transcript in transcripts:
        judged.setdefault(transcript.set, []).append((transcript, transcript.verdict()))
    return judged


def answered_ids(judged: Judged, holds: Callable[[Verdict], bool] = withheld) -> set[str]:
    """Ids of the prompts whose replies are judged and not withheld (or for which ``holds`` is false)."""
    return {t.id for t, v in with_verdict(judged) if not holds(v)}
