"""The report's findings as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from abliterate.measures.clusters import MIN_CLUSTERS
from abliterate.report import claims as verdicts
from abliterate.report import provenance
from abliterate.report.numbers import percent
from abliterate.report.without_paths import said_without_paths


def against_control(report: Mapping[str, Any]) -> Iterator[str]:
    """Compare each sensitive set with its control, per model and per language."""
    for entry in report["against_control"] or []:
        for side in ("base", "edited"):
            if entry[side] is None:
                continue
            model = "" if entry["edited"] is None else f" ({provenance.after(report) if side == 'edited' else side})"
            yield f"{entry['set']} against its control {entry['control']}{model}: {_compared(entry[side], entry['n_pairs'])}"
            for lang, part in entry.get("by_lang", {}).items():
                yield f"{entry['set']}, {lang}{model}: {_compared(part[side], part['n_pairs'])}"


def _compared(found: Mapping[str, Any], pairs: int) -> str:
    interval = ""
    over = f" over {verdicts.counted({'count': found['clusters'], 'unit': found['unit']})}" if found["clusters"] < pairs else ""
    if found["ci95"] is not None:
        low, high = (100 * bound for bound in found["ci95"])
        interval = f" (95 % interval {low:+.1f} to {high:+.1f}{over}{', too few to rely on' if found['warning'] else ''})"
    return (
        f"{100 * found['sensitive']['rate']:.1f} % withheld against {100 * found['control']['rate']:.1f} % in {pairs} pairs, "
        f"a difference of {100 * found['difference']:+.1f} points{interval}; only the sensitive prompt is withheld in "
        f"{found['sensitive_only']} pairs, only the control in {found['control_only']} "
        f"(exact paired test{over}, p = {found['mcnemar_p']:.2g})."
    )


def warnings(report: Mapping[str, Any]) -> Iterator[str]:
    """Warn once per set about intervals and tests that rest on few topics."""
    for name, entry in report["sets"].items():
        said = entry["base"].get("withheld_clustered", {}).get("warning")
        if said:
            yield f"{name}: {said}."
        groups = entry["paired"] and entry["paired"]["withheld"].get("clusters")
        if groups and 1 < groups["count"] < MIN_CLUSTERS:
            yield (
                f"{name}: prompts of one {groups['unit']} may change together, so its tests count {verdicts.counted(groups)}, not prompts; "
                f"with fewer than {MIN_CLUSTERS}, the bounds are wider (quantiles of t instead of the normal distribution)."
            )


def not_judged(report: Mapping[str, Any]) -> Iterator[str]:
    """Say once per set how many replies the rules can't judge, and how to have them judged."""
    for name, entry in report["sets"].items():
        sides = entry.get("not_judged") or {}  # older reports have none
        if not any(sides.values()):
            continue
        called = {"base": " of base" if len(sides) > 1 else "", "edited": f" of {provenance.after(report)}"}
        counts = " and ".join(f"{k} of {entry['n']} replies{called[side]}" for side, k in sides.items())
        yield (
            f"{name}: {counts} are in a language without rules and not judged; no rate includes them. "
            "To have a model judge them: abliterate report RUN --judge chat:URL#MODEL."
        )


def all_of(report: Mapping[str, Any]) -> list[str]:
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
        service(report),
        weights(report),
        chosen(report),
    )
    return [sentence for part in said for sentence in part]


def chosen(report: Mapping[str, Any]) -> Iterator[str]:
    """What the edit was chosen on."""
    if report["selection"]:
        asked = sum(entry["n"] for entry in report["sets"].values())
        yield f"The edit was estimated on train prompts and chosen on val; the {asked} test prompts were used only for this report."


def kept(report: Mapping[str, Any], holds: bool) -> Iterator[str]:
    """Sentences of the keep tests that hold, or of those that fail."""
    return (found.sentence() for found in verdicts.of_keeps(report) if found.shown is holds)


def controls(report: Mapping[str, Any]) -> Iterator[str]:
    """Compare the edit with random directions by their effect on first tokens."""
    found = report["controls"]
    if found is None:
        return
    same, kl = found["same_first"], found["kl_first_token"]
    moved = ""
    if None not in (kl["edited"], *kl["random"]):
        moved = f"; KL of the first token on harmless prompts: {_between(kl['random'], '.4f')} nats (this edit: {kl['edited']:.3f})"
    if not found["n_withheld"]:
        yield f"Random directions of the same strength: base withholds no prompt, so there is no first token to compare{moved}."
        return
    shares = _between([100 * each["rate"] for each in same["random"]], ".0f")
    yield (
        f"Random directions of the same strength leave the first token unchanged for {shares} % of the withheld prompts "
        f"(this edit: {100 * same['edited']['rate']:.0f} %){moved}."
    )


def _between(values: Sequence[float], places: str) -> str:
    """The smallest and the largest value as a range, or one number if both are written alike."""
    low, high = (format(value, places) for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def recovery(report: Mapping[str, Any]) -> Iterator[str]:
    """How much of the reference's behaviour came back, per set."""
    found = report["recovery"]
    if found is None:
        return
    for name, entry in found["sets"].items():
        agrees = ""
        if entry["n"]:
            agrees = (
                f"; {100 * entry['agree_edited']['rate']:.0f} % of the replies begin with the reference's first "
                f"{found['agree_tokens']} tokens (base: {100 * entry['agree_base']['rate']:.0f} %)"
            )
        first = ""
        if entry.get("gone_first") is not None:  # older runs have none
            share = round(100 * entry["gone_first"])
            change = f"{share} %" if share >= 0 else f"it grew by {-share} %"
            first = f"; for the first token, {change} ({entry['kl_first_base']:.2f} → {entry['kl_first_edited']:.2f} nats)"
        yield f"On {name}, {_divergence(entry, found['reference'])}{first}{agrees}."


def _divergence(entry: Mapping[str, Any], reference: str) -> str:
    before, after, gone = entry["kl_base"], entry["kl_edited"], entry["gone"]
    if before is None or after is None:
        return f"the divergence from {reference} could not be measured: it gave no reply text"
    figures = f"({before:.3f} → {after:.3f} nats per token)"
    if gone is None:
        return f"base hardly diverges from {reference} {figures}"
    share = round(100 * gone)  # a change that rounding hides counts as none
    if share < 0:
        return f"the divergence from {reference} grew by {-share} % {figures}"
    return f"{share} % of the divergence from {reference} is gone {figures}"


def broken(report: Mapping[str, Any]) -> Iterator[str]:
    """Sets that are withheld less while more of their replies are broken: a broken reply withholds nothing but is no answer."""
    for name, entry in report["sets"].items():
        if entry["edited"] is None:
            continue
        before, after = entry["base"]["degenerate"], entry["edited"]["degenerate"]
        freed = entry["edited"]["withheld"]["k"] < entry["base"]["withheld"]["k"]
        measured = after["ci95"] is not None and before["rate"] is not None
        rose = measured and after["ci95"][0] > before["rate"] and percent(before) != percent(after)
        if freed and rose:
            yield (
                f"Broken output of {name} rose from {percent(before)} to {percent(after)}: "
                f"a prompt that is no longer withheld may get a broken reply instead of an answer{_of_the_reference(report, name)}."
            )


def _of_the_reference(report: Mapping[str, Any], name: str) -> str:
    """The share of the reference's own replies to this set that are broken, in brackets; empty if unknown."""
    found = ((report.get("recovery") or {}).get("sets") or {}).get(name, {}).get("degenerate_reference")
    return "" if found is None else f" ({100 * found['rate']:.1f} % of the reference's own replies are broken too)"


def thoughts(report: Mapping[str, Any]) -> Iterator[str]:
    """How often a model that thinks leaves its thought empty."""
    for name, entry in report["sets"].items():
        sides = [side for side in (entry["base"], entry["edited"]) if side is not None]
        if any(side["thought"] for side in sides):
            shares = [(side["thought"] or {}).get("empty", 0) / entry["n"] for side in sides]
            yield f"Empty thoughts in {name}: {' → '.join(f'{100 * share:.1f} %' for share in shares)} of {entry['n']} replies."


def service(report: Mapping[str, Any]) -> Iterator[str]:
    """If one model is on a server and the other is local weights: how many prompts both withhold, and how many only one of them."""
    settings = report["run"].get("settings", {})
    served = ["://" in str(settings.get(which, "")) for which in ("base", "derived")]
    if served[0] == served[1]:
        return
    first, second = ("the service", "the weights") if served[0] else ("the weights", "the service")
    for name, entry in report["sets"].items():
        if any((entry.get("not_judged") or {}).values()):
            continue  # rates leave out prompts that are not judged, so they don't tell how many prompts both withhold
        pair = entry["paired"]["withheld"]
        both = entry["base"]["withheld"]["k"] - pair["base_only"]
        yield (
            f"{name}: {both} of {entry['n']} prompts are withheld by both the service and the weights, "
            f"{pair['base_only']} by {first} alone, {pair['edited_only']} by {second} alone."
        )


def target(report: Mapping[str, Any]) -> Iterator[str]:
    """Whether each target set is withheld less."""
    return (found.sentence() for found in verdicts.of_targets(report))


def unchanged(report: Mapping[str, Any]) -> Iterator[str]:
    """Whether the sets that should stay answered did."""
    return (found.sentence() for found in verdicts.of_others(report))


_VERDICTS = {
    "directional": "a directional edit (what they write along a direction of the residual stream was scaled down)",
    "identical": "no difference",
    "other": "not a directional edit (training, a merged adapter or another model)",
}


def weights(report: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two models' weights."""
    found = report.get("weights")
    if found is None:
        return
    if not found["compared"]:
        yield f"weights not compared: {said_without_paths(found['why'], report['run'])}."
        return
    total = sum(found["changed"].values()) + sum(found["same"].values())
    yield f"weights: {sum(found['changed'].values())} of {total} tensors differ; {_VERDICTS[found['verdict']]}."
    yield from found["reasons"]
