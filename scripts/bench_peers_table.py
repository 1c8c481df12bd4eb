"""What scripts/bench peers prints: a Markdown table of the derived models, and this program's against each of Heretic's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HERETIC_TRIALS = 200  # its default


def table(target: Sequence[str], keep: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A Markdown table: the base, then a line a model."""
    tested = [row for row in rows if "sets" in row]
    names = list(dict.fromkeys([*target, *keep, *(name for row in tested for name in row["sets"])]))
    withheld = [f"{name} withheld" + (" (target)" if name in target else " (keep)" if name in keep else "") for name in names]
    refused = [f"{name} refused (target)" for name in target]  # withheld holds vague replies too, which a small model gives of itself
    head = ["way", *refused, *withheld, "kept at the margin", "degenerate", "KL first token: answered / all", "KL a token along replies"]
    lines = [[*head, "seconds", "peak MB"]]
    if tested:
        base = tested[0]["sets"]
        cells = [share(base[name]["base"]["refused"]) for name in target]
        lines.append(["base", *cells, *(share(base[name]["base"]["withheld"]) for name in names), "", broken(base, "base"), "", "", "", ""])
    for row in rows:
        cost = [f"{row['cost']['seconds']:.0f}", f"{row['cost']['peak_rss_bytes'] / 1e6:.0f}"] if "cost" in row else ["", ""]
        if "sets" in row:
            drift = row["drift"]
            kept = "; ".join(f"{'yes' if t['holds'] else 'NOT shown'} (≤ {100 * t['upper_bound']:.1f})" for t in row["keep_tests"])
            kl = f"{nats(drift.get('kl_first_token_answered'))} / {nats(drift.get('kl_first_token'))}"
            sides = {name: row["sets"][name]["edited"] for name in names}
            rates = [*(sides[name]["refused"] for name in target), *(sides[name]["withheld"] for name in names)]
            middle = [*map(share, rates), kept, broken(row["sets"], "edited"), kl]
            lines.append([row["name"], *middle, nats(drift.get("kl_sequence")), *cost])
        else:
            lines.append([row["name"], f"failed: {row['failed']}", *[""] * (len(head) - 2), *cost])
    lines.insert(1, ["---"] * len(lines[0]))
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


def share(rate: Mapping[str, Any]) -> str:
    """``12.5 % (1/8)``."""
    return f"{100 * rate['k'] / rate['n']:.1f} % ({rate['k']}/{rate['n']})" if rate["n"] else "–"


def broken(sets: Mapping[str, Any], side: str) -> str:
    """Degenerate replies to all prompts together."""
    rates = [entry[side]["degenerate"] for entry in sets.values()]
    return share({"k": sum(rate["k"] for rate in rates), "n": sum(rate["n"] for rate in rates)})


def nats(value: float | None) -> str:
    """``0.071``."""
    return "–" if value is None else f"{value:.3f}"


def verdicts(target: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """This program's model against each of Heretic's, on both axes; and the seconds."""
    tested = {row["name"]: row for row in rows if "sets" in row}
    own, others = tested.get("ours"), [row for name, row in tested.items() if name.startswith("heretic")]
    if own is None or not others:
        return []

    def axes(row: Mapping[str, Any], kl: str) -> tuple[int, float]:
        return sum(row["sets"][name]["edited"]["withheld"]["k"] for name in target), row["drift"][kl]

    found = []
    for row in others:
        for kl in ("kl_first_token_answered", "kl_first_token"):
            (a, b), (c, d) = axes(own, kl), axes(row, kl)
            said = "better on both axes" if a < c and b < d else "no worse on both axes" if a <= c and b <= d else "not better on both axes"
            found.append(f"ours against {row['name']}: {said} (withheld {a} and {c}, {kl} {b:.3f} and {d:.3f})")
    theirs = others[0]["cost"]
    found.append(
        f"seconds: ours {own['cost']['seconds']:.0f}; Heretic {theirs['seconds']:.0f}, a trial {theirs['trial_seconds']:.1f}, so about "
        f"{theirs['default_trials_seconds']:.0f} with its default {HERETIC_TRIALS} trials: "
        f"{theirs['default_trials_seconds'] / own['cost']['seconds']:.1f} times ours"
    )
    return found
