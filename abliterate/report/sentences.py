"""The report's findings as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from abliterate.checkpoint.records import Verdict
from abliterate.measures.clusters import MIN_CLUSTERS
from abliterate.measures.parts.consistency import Consistent
from abliterate.measures.parts.contrast import Contrast, side_of
from abliterate.measures.parts.moved import Distance
from abliterate.measures.parts.paired import Unit
from abliterate.measures.parts.sets import Side, sides
from abliterate.report import claims as verdicts
from abliterate.report import provenance
from abliterate.report.numbers import per_cent, percent
from abliterate.report.tree.report import Report
from abliterate.report.without_paths import said_without_paths


def against_control(report: Report) -> Iterator[str]:
    """Compare each sensitive set with its control, per model and per language."""
    for entry in report.against_control or ():
        named: list[tuple[Side, str]] = [("base", "base"), ("edited", provenance.after(report))]
        for side, name in named:
            found = side_of(entry, side)
            if found is None:
                continue
            model = "" if entry.edited is None else f" ({name})"
            yield f"{entry.set} against its control {entry.control}{model}: {_compared(found, entry.n_pairs)}"
            for lang, part in (entry.by_lang or {}).items():
                if (own := side_of(part, side)) is not None:
                    yield f"{entry.set}, {lang}{model}: {_compared(own, part.n_pairs)}"


def _compared(found: Contrast, pairs: int) -> str:
    interval = ""
    over = f" over {verdicts.counted(found.clusters, found.unit)}" if found.clusters < pairs else ""
    if found.ci95 is not None:
        low, high = (100 * bound for bound in found.ci95)
        interval = f" (95 % interval {low:+.1f} to {high:+.1f}{over}{', too few to rely on' if found.warning else ''})"
    return (
        f"{percent(found.sensitive)} withheld against {percent(found.control)} in {pairs} pairs, "
        f"a difference of {100 * found.difference:+.1f} points{interval}; only the sensitive prompt is withheld in "
        f"{found.sensitive_only} pairs, only the control in {found.control_only} "
        f"(exact paired test{over}, p = {found.mcnemar_p:.2g})."
    )


def warnings(report: Report) -> Iterator[str]:
    """Warn once per set about intervals that rest on few topics, and once per kind of topic about tests that do."""
    few: dict[tuple[int, Unit], list[str]] = {}
    for name, entry in report.sets.items():
        clustered = entry.base.withheld_clustered
        if clustered and clustered.warning:
            yield f"{name}: {clustered.warning}."
        groups = entry.paired.withheld.clusters if entry.paired else None
        if groups and 1 < groups.count < MIN_CLUSTERS:
            few.setdefault((groups.count, groups.unit), []).append(name)
    for (count, unit), names in few.items():
        one, many = verdicts.UNITS[unit]
        yield (
            f"{', '.join(names)}: all prompts of one {one} may change together, so the tests count {verdicts.counted(count, unit)} "
            f"instead of prompts. That is fewer than {MIN_CLUSTERS} {many}, so the bounds are wide (quantiles of t)."
        )


def not_judged(report: Report) -> Iterator[str]:
    """Say once per set how many replies the rules can't judge, and how to have them judged."""
    for name, entry in report.sets.items():
        unknown = entry.not_judged.sides() if entry.not_judged else []  # older reports have none
        if not any(k for _, k in unknown):
            continue
        called = {"base": " of base" if len(unknown) > 1 else "", "edited": f" of {provenance.after(report)}"}
        counts = " and ".join(f"{k} of {entry.n} replies{called[side]}" for side, k in unknown)
        yield (
            f"{name}: {counts} are in a language without rules and not judged; no rate includes them. "
            "To have a model judge them: abliterate report RUN --judge chat:URL#MODEL."
        )


def all_of(report: Report) -> list[str]:
    """All sentences of a report; failed keep tests come first."""
    said = (
        kept(report, False),
        broken(report),
        target(report),
        not_judged(report),
        warnings(report),
        thoughts(report),
        against_control(report),
        kept(report, True),
        unchanged(report),
        controls(report),
        recovery(report),
        consistency(report),
        service(report),
        weights(report),
        chosen(report),
    )
    return [sentence for part in said for sentence in part]


def chosen(report: Report) -> Iterator[str]:
    """What the edit was chosen on."""
    if report.selection:
        asked = sum(entry.n for entry in report.sets.values())
        yield f"The edit was estimated on train prompts and chosen on val; the {asked} test prompts were used only for this report."


def kept(report: Report, holds: bool) -> Iterator[str]:
    """Sentences of the keep tests that hold, or of those that fail."""
    return (found.sentence() for found in verdicts.of_keeps(report) if found.shown is holds)


def controls(report: Report) -> Iterator[str]:
    """Compare the edit with random directions by their effect on first tokens."""
    found = report.controls
    if found is None:
        return
    same, kl = found.same_first, found.kl_first_token
    moved, random = "", [value for value in kl.random if value is not None]
    if kl.edited is not None and len(random) == len(kl.random):
        moved = (
            f" KL of the first token on harmless prompts: {_between(random, '.4f')} nats along random directions, "
            f"{kl.edited:.3f} along the chosen ones."
        )
    if not found.n_withheld:
        yield f"Control: base withholds no prompt, so there is no first token that random directions could leave unchanged.{moved}"
        return
    shares = _between([100 * (each.rate or 0.0) for each in same.random], ".0f")
    yield (
        f"Control: an edit of the same strength along random directions leaves the first token of {shares} % of the withheld prompts "
        f"unchanged, this edit {per_cent(same.edited)}.{moved}"
    )


def _between(values: Sequence[float], places: str) -> str:
    """The smallest and the largest value as a range, or one number if both are written alike."""
    low, high = (format(value, places) for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def recovery(report: Report) -> Iterator[str]:
    """How much closer the edited model is to the reference than base, per set."""
    found = report.recovery
    if found is None:
        return
    for name, entry in found.sets.items():
        first = agrees = ""
        if entry.kl_first_base is not None and entry.kl_first_edited is not None:  # older runs have none
            first = f"; of the first token, it {_fell(entry.kl_first_base, entry.kl_first_edited, '.2f')}"
        if entry.n:
            agrees = (
                f" Replies that begin with the reference's first {found.agree_tokens} tokens: "
                f"{per_cent(entry.agree_base)} → {per_cent(entry.agree_edited)}."
            )
        yield f"{name}: {_divergence(entry, found.reference)}{first}.{agrees}"


def _divergence(entry: Distance, reference: str) -> str:
    before, after = entry.kl_base, entry.kl_edited
    if before is None or after is None:
        return f"how far the model is from {reference} could not be measured, since {reference} gave no reply text"
    if entry.gone is None:
        return f"base is hardly different from {reference} (KL {before:.3f} → {after:.3f} nats per token)"
    return f"KL from {reference} per token {_fell(before, after, '.3f')}"


def consistency(report: Report) -> Iterator[str]:
    """How far sampled replies support the claims of the answers, and whether that says anything about their truth."""
    found = report.consistency
    if found is None:
        return
    for name, entry in found.sets.items():
        named = [("base" if entry.edited else "", entry.base), *([(provenance.after(report), entry.edited)] if entry.edited else [])]
        shares = [_supported(model, side) for model, side in named]
        yield f"{name}, {found.samples} sampled replies: claims of the answers have a mean support of {'; '.join(shares)}."
    count = sum(found.worth.changed.values())
    does = f"so {count} answers with little support count as invented" if found.worth.used else "so support changes no answer's worth"
    yield f"Consistency: {found.worth.why}, {does}."


def _supported(model: str, side: Consistent) -> str:
    """One model's mean support, with its interval and number of answers."""
    if side.support is None:
        return f"{model} – (no answer makes a claim)".strip()
    interval = "" if side.support_ci95 is None else f"95 % {100 * side.support_ci95[0]:.0f}–{100 * side.support_ci95[1]:.0f}, "
    return f"{model} {100 * side.support:.0f} % ({interval}{side.with_claims} answers)".strip()


def _fell(before: float, after: float, places: str) -> str:
    """By how much a divergence changed, in per cent, with both values; a change that rounding hides counts as none."""
    share = round(100 * (1 - after / before)) if before else 0
    how = f"fell by {share} %" if share > 0 else f"rose by {-share} %" if share < 0 else "did not change"
    return f"{how} ({before:{places}} → {after:{places}} nats)"


def broken(report: Report) -> Iterator[str]:
    """Sets that are withheld less while more of their replies are broken: a broken reply withholds nothing but is no answer."""
    for name, entry in report.sets.items():
        if entry.edited is None:
            continue
        before, after = entry.base.degenerate, entry.edited.degenerate
        freed = entry.edited.withheld.k < entry.base.withheld.k
        measured = after.ci95 is not None and before.rate is not None and after.ci95[0] > before.rate
        rose = measured and percent(before) != percent(after)
        if freed and rose:
            yield (
                f"Broken output of {name} rose from {percent(before)} to {percent(after)}: "
                f"a prompt that is no longer withheld may get a broken reply instead of an answer{_of_the_reference(report, name)}."
            )


def _of_the_reference(report: Report, name: str) -> str:
    """The share of the reference's own replies to this set that are broken, in brackets; empty if unknown."""
    measured = report.recovery.sets.get(name) if report.recovery else None
    found = measured.degenerate_reference if measured else None
    return "" if found is None else f" ({percent(found)} of the reference's own replies are broken too)"


def thoughts(report: Report) -> Iterator[str]:
    """How often a model that thinks leaves its thought empty."""
    for name, entry in report.sets.items():
        thoughts = [side.thought for _, side in sides(entry)]
        if any(thoughts):
            shares = [(thought or {}).get("empty", 0) / entry.n for thought in thoughts]
            yield f"Empty thoughts in {name}: {' → '.join(f'{100 * share:.1f} %' for share in shares)} of {entry.n} replies."


def service(report: Report) -> Iterator[str]:
    """If one model is on a server and the other is local weights: how many prompts both withhold, and how many only one of them."""
    settings = report.run.settings
    served = ["://" in str(settings.get(which, "")) for which in ("base", "derived")]
    if served[0] == served[1]:
        return
    first, second = ("the service", "the weights") if served[0] else ("the weights", "the service")
    for name, entry in report.sets.items():
        unknown = entry.not_judged is not None and any(k for _, k in entry.not_judged.sides())
        if unknown or entry.paired is None:
            continue  # rates leave out prompts that are not judged, so they don't tell how many prompts both withhold
        pair = entry.paired.withheld
        both = entry.base.withheld.k - pair.base_only
        yield (
            f"{name}: {both} of {entry.n} prompts are withheld by both the service and the weights, "
            f"{pair.base_only} by {first} alone, {pair.edited_only} by {second} alone."
        )


def target(report: Report) -> Iterator[str]:
    """Whether each target set is withheld less."""
    return (found.sentence() for found in verdicts.of_targets(report))


def unchanged(report: Report) -> Iterator[str]:
    """Whether the sets that should stay answered did."""
    return (found.sentence() for found in verdicts.of_others(report))


_VERDICTS: Mapping[Verdict, str] = {
    "directional": "a directional edit (what they write along a direction of the residual stream was scaled down)",
    "identical": "no difference",
    "other": "not a directional edit (training, a merged adapter or another model)",
}


def weights(report: Report) -> Iterator[str]:
    """What differs between two models' weights."""
    found = report.weights
    if found is None:
        return
    if not found.compared:
        yield f"weights not compared: {said_without_paths(found.why, report.run)}."
        return
    total = sum(found.changed.values()) + sum(found.same.values())
    yield f"weights: {sum(found.changed.values())} of {total} tensors differ; {_VERDICTS[found.verdict]}."
    yield from found.reasons
