"""Figures of the first screen: rates before and after on one scale, and drift on its own scale in nats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from abliterate.outcomes.records import NOT_JUDGED
from abliterate.report.numbers import outcome

_GROUPS = (
    ("target", "Should go", "withheld", ("target",)),
    ("keep", "Must stay", "refused", ("keep",)),
    ("answered", "Should be answered", "withheld", ("baseline", "harmless", "borderline")),
    ("audited", "Withheld", "withheld", ("audited",)),
)
_DRIFTS = (
    ("kl_first_token", "first token", "KL(base‖{after}) of the first token, all {n} prompts"),
    ("kl_first_token_answered", "answered prompts only", "KL(base‖{after}) of the first token, the {n_answered} prompts that base answers"),
    ("kl_sequence", "along the base's replies", "KL(base‖{after}) per token along the base's own replies"),
)


def first_screen(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups of rows {label, measure, n, base, edited}, one per role that has sets, and one for broken output."""
    groups = []
    for key, title, measure, roles in _GROUPS:
        rows = [_row(name, entry, measure) for name, entry in report["sets"].items() if entry["role"] in roles]
        if rows:
            groups.append({"key": key, "title": title, "measure": measure, "rows": rows})
    broken = [_row(name, entry, "degenerate") for name, entry in report["sets"].items()]
    if broken:
        groups.append({"key": "broken", "title": "Broken output", "measure": "loops, word salad", "rows": broken})
    return groups


def _row(name: str, entry: Mapping[str, Any], measure: str) -> dict[str, Any]:
    edited = entry["edited"]
    return {
        "label": name,
        "measure": outcome(measure),
        "n": entry["base"][measure]["n"],
        "base": entry["base"][measure],
        "edited": None if edited is None else edited[measure],
    }


def drift_rows(drift: Mapping[str, Any] | None, after: str = "edited") -> dict[str, Any] | None:
    """Means in nats with their intervals, and the round number at which their scale ends; None without any.

    ``after``: the name of the second model.
    """
    if not drift:
        return None
    found = [
        (label, said.format(**drift, after=after), drift[key], drift[f"{key}_ci95"])
        for key, label, said in _DRIFTS
        if drift.get(key) is not None
    ]
    if not found:
        return None
    end = round_up(max([0.1, *(max(value, ci[1]) for _, _, value, ci in found)]))
    rows = [{"label": label, "said": said, "value": value, "ci95": ci} for label, said, value, ci in found]
    return {"set": drift["set"], "end": end, "rows": rows}


def controls(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The edit beside edits along random directions: rates, and drift in nats on one scale; None without controls."""
    found = report.get("controls")
    if not found:
        return None
    nats = [found["kl_first_token"]["edited"], *found["kl_first_token"]["random"]]
    return {**found, "end": round_up(max([0.1, *(value for value in nats if value is not None)]))}


def round_up(value: float) -> float:
    """Round up to one of 0.1, 0.2, 0.5, 1, 2, 5, ..."""
    power = 10.0 ** math.floor(math.log10(value))
    return round(next((step * power for step in (1, 2, 5) if step * power >= value - 1e-12), 10 * power), 12)


def bars(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each set's outcomes as parts of one bar per model: {name, role, n, sides: [(model, [(outcome, k, start, share)])]} in per cent."""
    found = []
    for name, entry in report["sets"].items():
        sides = [(side, _parts(entry[side]["outcomes"])) for side in ("base", "edited") if entry[side] is not None]
        found.append({"name": name, "role": entry["role"], "n": entry["n"], "sides": sides})
    return found


def outcomes_there(report: Mapping[str, Any]) -> list[str]:
    """The outcomes that the page lists: all of them, but ``not_judged`` only if a reply has it."""
    sides = [entry[side]["outcomes"] for entry in report["sets"].values() for side in ("base", "edited") if entry[side] is not None]
    names = dict.fromkeys(name for outcomes in sides for name in outcomes)
    return [name for name in names if name != NOT_JUDGED or any(outcomes.get(name) for outcomes in sides)]


def _parts(outcomes: Mapping[str, int]) -> list[tuple[str, int, float, float]]:
    total, at, parts = sum(outcomes.values()), 0, []
    for name, count in outcomes.items():
        if count:
            parts.append((name, count, 100 * at / total, 100 * count / total))
            at += count
    return parts
