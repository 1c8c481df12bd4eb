"""The content of report.json (schema abliterate/report/1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from abliterate.measures.contrast import against_control
from abliterate.measures.deliberation import thought_by_answer
from abliterate.measures.statistics import bootstrap_mean
from abliterate.measures.summary import Judged, answered_ids, by_topic, keep_test, set_entry, table, unchanged
from abliterate.model.chat.parts import split_thought
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.transcripts import Transcript

SCHEMA = "abliterate/report/1"
_ROWS = ("tables.", "against_control[")  # paths of lists in which every row would repeat that nothing was edited


def report_document(
    run: Mapping[str, Any],
    roles: Mapping[str, str],
    base: Mapping[str, Judged],
    edited: Mapping[str, Judged] | None,
    drift: Mapping[str, Any] | None,
    selection: Mapping[str, Any] | None,
    edit: Mapping[str, Any] | None,
    margin: float,
    controls: Mapping[str, Any] | None = None,
    recovery: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything measured. ``roles`` maps each set's name to its role, in the order of the report."""
    keeps = [name for name, role in roles.items() if role == "keep"] if edited is not None else []
    tests = [keep_test(name, base[name], edited[name], margin) for name in keeps] if edited is not None else []
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "run": dict(run),
        "sets": {name: set_entry(role, base[name], None if edited is None else edited[name]) for name, role in roles.items()},
        "by_topic": {name: by_topic(base[name], None if edited is None else edited[name]) for name in roles},
        "tables": {name: table(base[name], None if edited is None else edited[name]) for name in roles},
        "against_control": against_control(roles, base, edited),
        "thought_by_answer": thought_by_answer(base, edited),
        "unchanged": None if edited is None else unchanged(roles, base, edited, margin),
        "keep_test": tests[0] if tests else None,
        "keep_tests": tests,
        "controls": controls,
        "recovery": recovery,
        "drift": _drift(drift, base) if drift else None,
        "benchmarks": None,
        "selection": selection,
        "edit": edit,
    }
    document["not_measured"] = not_measured(document)
    return document


def _drift(drift: Mapping[str, Any], base: Mapping[str, Judged]) -> dict[str, Any]:
    """Means over prompts or texts, in nats; those along texts are per token. ``answered``: only prompts that base does not withhold."""
    answered = answered_ids(base.get(drift["set"], []))
    found: dict[str, Any] = {"set": drift["set"], "n": len(drift["ids"]), "n_answered": sum(i in answered for i in drift["ids"])}
    for name in ("kl_first_token", "kl_sequence"):
        values = drift.get(name) or [None] * len(drift["ids"])
        kept = [value for i, value in zip(drift["ids"], values, strict=True) if i in answered]
        found |= {**_mean(name, values), **_mean(f"{name}_answered", kept)}
    for name in ("ce_base", "ce_edited", "own_base", "own_edited"):
        found[name] = _mean(name, drift.get(name) or [])[name]
    for name in ("suppression_base", "suppression_edited"):
        if drift.get(name):  # only for models that think
            found[name] = _mean(name, drift[name])[name]
    return found


def _mean(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    """A mean with its bootstrap interval; null without values."""
    there = [value for value in values if value is not None]
    if not there:
        return {name: None, f"{name}_ci95": None}
    return {name: sum(there) / len(there), f"{name}_ci95": list(bootstrap_mean(there))}


def not_measured(document: Mapping[str, Any]) -> list[str]:
    """Paths of everything that the schema has a place for but this run did not measure: every null, except those that repeat another and
    warnings that aren't needed.

    Of ``run``, only the hashes of the weights are listed, if they are unknown because only a server has the weights.
    """
    measured = {key: value for key, value in document.items() if key != "run"}
    unknown = ["run.model_hashes"] if document["run"].get("model_hashes", {}) is None else []
    nulls = [path for path in _nulls(measured, "") if not (path.startswith(_ROWS) and path.endswith(".edited"))]
    return [*nulls, *unknown]


def _nulls(value: Any, path: str) -> Iterator[str]:
    if value is None:
        yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "warning":
                yield from _nulls(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _nulls(inner, f"{path}[{number}]")


def excerpt(text: str, length: int = 280) -> str:
    """The opening of a reply: enough to see its outcome."""
    return text if len(text) <= length else text[:length].rstrip() + " …"


def pairs_of(base: Mapping[str, Judged], edited: Mapping[str, Judged] | None, length: int | None = 280) -> dict[str, list[dict[str, Any]]]:
    """Replies side by side, by set, for the page: the first ``length`` characters of each, or whole if None."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, judged in base.items():
        others: Sequence[Any] = edited[name] if edited is not None else [None] * len(judged)
        rows[name] = [
            {
                "prompt": t.prompt if length is None else excerpt(t.prompt, length),
                "lang": t.lang,
                "topic": t.topic or t.category,
                "base": _side(t, v, length),
                "edited": _side(o[0], o[1], length) if o else None,
            }
            for (t, v), o in zip(judged, others, strict=True)
        ]
    return rows


def _side(transcript: Transcript, verdict: Verdict, length: int | None) -> dict[str, Any]:
    """The answer, which decides the outcome, and the thought as a text of its own, so that a long thought does not hide the answer."""
    parts = split_thought(transcript.response, transcript.begins_in_thought)
    thought, text = parts.thought, transcript.response if parts.thought is None else parts.answer
    return {
        "thought": thought if thought is None or length is None else excerpt(thought, length // 2),
        "text": text if length is None else excerpt(text, length),
        "outcome": verdict.outcome,
        "rule": verdict.rule,
        "substance": verdict.substance,
    }
