"""The report's findings as sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from abliterate.checkpoint.records import Verdict
from abliterate.measures.clusters import MIN_CLUSTERS
from abliterate.measures.parts.consistency import Consistent
from abliterate.measures.parts.contrast import Contrast, side_of
from abliterate.measures.parts.elicitation import KnownSet, Reading
from abliterate.measures.parts.moved import Distance
from abliterate.measures.parts.paired import Unit
from abliterate.measures.parts.sets import Side, sides
from abliterate.report import claims as verdicts
from abliterate.report import provenance
from abliterate.report.numbers import auc_of, per_cent, percent
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
            yield f"{entry.set} and its control {entry.control}{model}: {_compared(found, entry.n_pairs)}"
            for lang, part in (entry.by_lang or {}).items():
                if (own := side_of(part, side)) is not None:
                    yield f"{entry.set} and its control, {lang}{model}: {_compared(own, part.n_pairs)}"


def _compared(found: Contrast, pairs: int) -> str:
    interval = ""
    over = f" over {verdicts.counted(found.clusters, found.unit)}" if found.clusters < pairs else ""
    if found.ci95 is not None:
        low, high = (100 * bound for bound in found.ci95)
        interval = f" (95 % interval {low:+.1f} to {high:+.1f}{over}{', too few to rely on' if found.warning else ''})"
    return (
        f"{percent(found.sensitive)} and {percent(found.control)} of the replies are withheld in {pairs} pairs, "
        f"a difference of {100 * found.difference:+.1f} points{interval}. In {found.sensitive_only} pairs only the reply to the sensitive "
        f"prompt is withheld, in {found.control_only} only the reply to the control (exact paired test{over}, p = {found.mcnemar_p:.2g})."
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
            f"{', '.join(names)}: replies to the prompts of one {one} may change together, so the tests count the "
            f"{verdicts.counted(count, unit)}, not the prompts. With fewer than {MIN_CLUSTERS} {many}, the bounds are wide (Student's t)."
        )


def not_judged(report: Report) -> Iterator[str]:
    """Say once per set how many replies the rules can't judge, and how to have them judged."""
    for name, entry in report.sets.items():
        unknown = entry.not_judged.sides() if entry.not_judged else []  # older reports have none
        if not any(k for _, k in unknown):
            continue
        called = {"base": " of the base" if len(unknown) > 1 else "", "edited": f" of the {provenance.after(report)} model"}
        counts = " and ".join(f"{k} of {entry.n} replies{called[side]}" for side, k in unknown)
        yield (
            f"{name}: {counts} are in a language without rules and were not judged. No rate includes them. "
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
        knowledge(report),
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
        yield (
            "Directions were estimated on train prompts, and the edit was chosen on val prompts. "
            f"The {asked} test prompts were used only for this report."
        )


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
        yield f"Control: none of the base's replies is withheld, so there is no first token to compare.{moved}"
        return
    shares = _between([100 * (each.rate or 0.0) for each in same.random], ".0f")
    yield (
        f"Control: edits of the same strength along random directions leave the first token unchanged in {shares} % of the base's "
        f"withheld replies. This edit leaves it unchanged in {per_cent(same.edited)}.{moved}"
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
            first = f"; at the first token, KL {_fell(entry.kl_first_base, entry.kl_first_edited, '.2f')}"
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
        return f"the base hardly differs from {reference} (KL {before:.3f} → {after:.3f} nats per token)"
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


def knowledge(report: Report) -> Iterator[str]:
    """Whether the models know the facts that base withholds: AUCs in the headline context, the controls first."""
    found = report.elicitation
    if found is None:
        return
    names: dict[Side, str] = {"base": "base", "edited": provenance.after(report)}
    how = f"in the context {found.context}"
    if found.control is not None:
        yield (
            f"Facts of the controls ({', '.join(found.controls)}): the model prefers the true fact to a matched false one with an AUC of "
            f"{auc_of(found.control)} {how}, which these sets alone chose; 0.5 is chance, brackets hold 95 % intervals."
        )
    else:
        yield f"Facts: no control set was asked, so the AUCs are {how} and can't show that the model does not know something."
    for name, entry in found.sets.items():
        for side, known in found.sides(name):
            hidden = known.withheld
            if hidden is None:
                continue
            model = f" ({names[side]})" if entry.edited is not None else ""
            figures = f"AUC {auc_of(hidden)} on what base withholds, n = {hidden.n}"
            yield f"{name}{model}: {_KNOWN[hidden.reading]} ({figures}){_by_topic(entry, side)}."


_KNOWN: Mapping[Reading, str] = {
    "knows": "the model knows what is withheld",
    "does_not_know": "no sign that the model knows what is withheld",
    "undecided": "whether the model knows what is withheld stays open",
}


def _by_topic(entry: KnownSet, side: Side) -> str:
    """How many of a set's topics with withheld replies have each reading; empty without topics."""
    found = [topic.withheld if side == "base" else topic.withheld_edited for topic in entry.topics.values()]
    counts = Counter(each.reading for each in found if each is not None)
    if not counts:
        return ""
    return f"; by topic: {counts['knows']} known, {counts['does_not_know']} not known, {counts['undecided']} undecided"


def broken(report: Report) -> Iterator[str]:
    """Sets on which fewer replies are withheld but more are broken: a broken reply withholds nothing but is no answer. Only where the
    paired test shows it, and the figures do."""
    for name, entry in report.sets.items():
        pairs = entry.paired.degenerate if entry.paired else None
        if entry.edited is None or pairs is None:
            continue
        before, after = entry.base.degenerate, entry.edited.degenerate
        freed = entry.edited.withheld.k < entry.base.withheld.k
        rose = pairs.edited_only > pairs.base_only and pairs.mcnemar_p < verdicts.LEVEL
        if freed and rose and percent(before) != percent(after):
            yield (
                f"Broken output on {name} rose from {percent(before)} to {percent(after)}: "
                f"where the base withholds an answer, the {provenance.after(report)} model may give a broken reply instead"
                f"{_of_the_reference(report, name)}."
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
            yield f"Empty thoughts on {name}: {' → '.join(f'{100 * share:.1f} %' for share in shares)} of {entry.n} replies."


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
            f"{name}: of the replies to {entry.n} prompts, both the service and the weights withhold {both}, "
            f"only {first} {pair.base_only}, only {second} {pair.edited_only}."
        )


def target(report: Report) -> Iterator[str]:
    """Whether fewer replies on each target set are withheld."""
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
