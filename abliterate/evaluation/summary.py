"""From transcripts to the figures of the report: rates with intervals, paired tests, by topic and by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from abliterate.evaluation.outcomes import OUTCOMES, WITHHELD, Verdict
from abliterate.evaluation.statistics import discordant, drop_upper_bound, mcnemar, wilson
from abliterate.evaluation.transcripts import Transcript

Judged = Sequence[tuple[Transcript, Verdict]]


def rate(k: int, n: int) -> dict[str, Any]:
    """A rate with its n and Wilson 95 % interval; without an n its rate and interval are null."""
    return {"k": k, "n": n, "rate": k / n if n else None, "ci95": list(wilson(k, n)) if n else None}


def refused(verdict: Verdict) -> bool:
    return verdict.outcome == "refused"


def withheld(verdict: Verdict) -> bool:
    return verdict.outcome in WITHHELD


def figures(judged: Judged) -> dict[str, Any]:
    """Outcome counts and rates of one model on one set."""
    n = len(judged)
    counts = Counter(v.outcome for _, v in judged)
    factual = [v for _, v in judged if v.substance is not None]
    thoughts = Counter(v.thought for _, v in judged if v.thought is not None)
    return {
        "outcomes": {name: counts[name] for name in OUTCOMES},
        "refused": rate(sum(refused(v) for _, v in judged), n),
        "withheld": rate(sum(withheld(v) for _, v in judged), n),
        "degenerate": rate(counts["degenerate"], n),
        "substance": rate(sum(bool(v.substance) for v in factual), len(factual)) if factual else None,
        "thought": dict(sorted(thoughts.items())) if thoughts else None,
    }


def paired(base: Judged, edited: Judged) -> dict[str, Any]:
    """Exact McNemar tests of refused and withheld on the same prompts."""
    found = {}
    for name, holds in (("refused", refused), ("withheld", withheld)):
        before, after = discordant([holds(v) for _, v in base], [holds(v) for _, v in edited])
        found[name] = {"base_only": before, "edited_only": after, "mcnemar_p": mcnemar(before, after)}
    return found


def set_entry(role: str, base: Judged, edited: Judged | None) -> dict[str, Any]:
    """One entry of the report's ``sets``, with the same figures by language where there are several."""
    langs = sorted({t.lang for t, _ in base})
    entry = {"role": role, "lang": "+".join(langs), "n": len(base), **_compared(base, edited)}
    if len(langs) > 1:
        entry["by_lang"] = {lang: _compared(_of(base, lang), None if edited is None else _of(edited, lang)) for lang in langs}
    return entry


def _of(judged: Judged, lang: str) -> Judged:
    return [(t, v) for t, v in judged if t.lang == lang]


def _compared(base: Judged, edited: Judged | None) -> dict[str, Any]:
    return {
        "base": figures(base),
        "edited": None if edited is None else figures(edited),
        "paired": None if edited is None else paired(base, edited),
    }


def by_topic(base: Judged, edited: Judged | None) -> dict[str, Any]:
    """Withheld rates by topic (or category where prompts have no topic), base and edited."""
    groups = sorted({topic_of(t) for t, _ in base})
    return {group: _topic_entry(group, base, edited) for group in groups if group}


def topic_of(transcript: Transcript) -> str:
    return transcript.topic or transcript.category


def _topic_entry(group: str, base: Judged, edited: Judged | None) -> dict[str, Any]:
    def withheld_rate(judged: Judged) -> dict[str, Any]:
        chosen = [v for t, v in judged if topic_of(t) == group]
        return rate(sum(withheld(v) for v in chosen), len(chosen))

    return {
        "n": sum(topic_of(t) == group for t, _ in base),
        "base": withheld_rate(base),
        "edited": None if edited is None else withheld_rate(edited),
    }


def keep_test(name: str, base: Judged, edited: Judged, margin: float) -> dict[str, Any]:
    """One-sided non-inferiority of the refusals of a keep set (alpha 0.05): did they fall by less than the margin?"""
    before, after = discordant([refused(v) for _, v in base], [refused(v) for _, v in edited])
    bound = drop_upper_bound(before, after, len(base))
    return {"set": name, "n": len(base), "margin": margin, "upper_bound": bound, "holds": bound < margin}


def judge_all(transcripts: Iterable[Transcript]) -> dict[str, list[tuple[Transcript, Verdict]]]:
    """Verdicts by set, in the transcripts' order."""
    judged: dict[str, list[tuple[Transcript, Verdict]]] = {}
    for transcript in transcripts:
        judged.setdefault(transcript.set, []).append((transcript, transcript.verdict()))
    return judged


def answered_ids(judged: Judged, holds: Callable[[Verdict], bool] = withheld) -> set[str]:
    """Ids of the prompts that were not withheld."""
    return {t.id for t, v in judged if not holds(v)}
