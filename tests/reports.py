"""Reports for tests, with every part that a run can have, on small made-up figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from abliterate.checkpoint.records import EditSummary
from abliterate.choice.records import Selection
from abliterate.files import Record
from abliterate.measures.parts.moved import Controls, DriftValues, Recovery
from abliterate.measures.summary import Judged, rate
from abliterate.replies.transcripts import Transcript
from abliterate.report.document import report_document
from abliterate.report.tree.report import Report
from abliterate.runs.document import RunRecord

R = TypeVar("R", bound=Record)

NO, YES, LOOP = "I can't help with that.", "Heat the water and pour it over the leaves.", "tea tea tea tea " * 20
ROLES = {"hot": "target", "cold": "baseline", "danger": "keep", "plain": "harmless"}
LAYERS = 12


@dataclass(frozen=True)
class Made:
    """A report with the replies and figures that it was made from."""

    report: Report
    base: dict[str, Judged]
    edited: dict[str, Judged] | None
    auc: dict[str, list[float]] | None


def typed(kind: type[R], document: Mapping[str, Any]) -> R:
    """A record of a plain document, as if it was read from a file."""
    return kind.model_validate_json(json.dumps(document))


GONE = object()


def changed(report: R, changes: Mapping[str, Any]) -> R:
    """The record with other values at some paths (``run.settings.limit``, ``keep_tests.0.margin``); ``GONE`` takes a key away."""
    document = json.loads(json.dumps(report.document()))
    for path, value in changes.items():
        *above, last = path.split(".")
        place = document
        for part in above:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if value is GONE:
            del place[last]
        else:
            place[int(last) if isinstance(place, list) else last] = value.document() if isinstance(value, Record) else value
    return typed(type(report), document)


def filled(default: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A document with all parts, of one that has only those that a test is about."""
    both = [key for key, value in given.items() if isinstance(value, dict) and isinstance(default.get(key), dict)]
    return {**default, **given, **{key: filled(default[key], given[key]) for key in both}}


PLAIN_RUN = {
    "schema": "abliterate/run/1", "abliterate": "0.1.0", "settings": {}, "resolved": {"seeds": {}}, "model_path": None, "hub_id": None,
    "revision": None, "model_hashes": {}, "prompts": {}, "versions": {},
}  # fmt: skip
PLAIN_EDIT = {
    "tensors": 1, "worst_left": 0.0, "worst_error": 0.0, "embedding": {"policy": "skip", "tied_to_unembedding": True}, "not_edited": [],
}  # fmt: skip
PLAIN_CANDIDATE = {
    "name": "mean, block 3", "kind": "single", "estimator": "mean", "position": -1, "layer": 3, "bypass": -1.0, "stays": 0.1, "induce": 1.0,
    "kl": 0.1, "spill": 0.0,
}  # fmt: skip
PLAIN_POINT = {
    "step": 0, "weight": 1.0, "target_left": 0.5, "keep_kl": 0.0, "kl": 0.1, "kl_sequence": 0.1, "edits": 1.0, "on_front": True,
    "chosen": False,
}  # fmt: skip
PLAIN_TUNING = {
    "kind": "gradient", "seed": 0, "steps": None, "prefer": "balanced", "max_kl": None, "history": [], "front": [],
    "examples": {"target": 1, "keep": 1, "baseline": 1, "harmless": 1}, "strength": [], "cosine_to_start": None,
}  # fmt: skip
PLAIN_SELECTION = {
    "chosen": PLAIN_CANDIDATE, "filters": {"max_kl": 0.1, "max_kl_in_force": 0.1, "max_layer": 0.8}, "relaxed": [], "candidates": [],
    "strength": 1.0, "yardstick": {"asked": 1, "withheld": 1, "base_logprob": None},
}  # fmt: skip


def run_of(given: Mapping[str, Any]) -> RunRecord:
    return typed(RunRecord, filled(PLAIN_RUN, given))


def selection_of(given: Mapping[str, Any]) -> Selection:
    """A choice with the parts that a test gives; ``tuning`` and its front may be incomplete too."""
    whole = filled(PLAIN_SELECTION, {key: value for key, value in given.items() if key != "tuning"})
    whole["candidates"] = [filled(PLAIN_CANDIDATE, each) for each in whole["candidates"]]
    if given.get("tuning"):
        front = [filled(PLAIN_POINT, each) for each in given["tuning"].get("front", [])]
        whole["tuning"] = {**filled(PLAIN_TUNING, given["tuning"]), "front": front}
    return typed(Selection, whole)


def reported(
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
) -> Report:
    """The report of these parts; what a test leaves out of them is filled in."""
    return report_document(
        run=run_of(run),
        roles=roles,
        base=base,
        edited=edited,
        drift=None if drift is None else typed(DriftValues, drift),
        selection=None if selection is None else selection_of(selection),
        edit=None if edit is None else typed(EditSummary, filled(PLAIN_EDIT, edit)),
        margin=margin,
        controls=None if controls is None else typed(Controls, controls),
        recovery=None if recovery is None else typed(Recovery, recovery),
    )


def judged(name: str, responses: list[str], **fields: Any) -> Judged:
    """Replies with their verdicts; every other one is Chinese, four in a row share a topic."""
    twin = {"hot": "cold", "cold": "hot"}.get(name)
    made = [
        Transcript(
            name,
            f"{name}-{i}",
            fields.get("prompt", f"What about the {name} matter, number {i}?"),
            response,
            fields.get("lang", ("en", "zh")[i % 2]),
            topic=f"topic {i // 4}" if twin else None,
            category="" if twin else ("fire", "water")[i % 2],
            pair=f"{twin}-{i}" if twin else None,
        )
        for i, response in enumerate(responses)
    ]
    return [(transcript, transcript.verdict()) for transcript in made]


def run_record(**settings: Any) -> dict[str, Any]:
    return {
        "schema": "abliterate/run/1",
        "abliterate": "0.1.0",
        "settings": {"model": "some/model", "target": ["hot"], "keep": ["danger"], "max_new_tokens": 64, "limit": None, **settings},
        "resolved": {"device": "cpu", "seeds": {"bootstrap": 0}},
        "model_path": "/models/some",
        "hub_id": None,
        "revision": None,
        "model_hashes": {"model.safetensors": "ab" * 32, "config.json": "cd" * 32},
        "prompts": {name: {"role": role, "sha256": "ef" * 32, "n": 12} for name, role in ROLES.items()},
        "versions": {"python": "3.11", "torch": "2.6"},
    }


def selection(tuned: bool = True) -> dict[str, Any]:
    names = [f"difference-of-means, block {layer}, position -1" for layer in range(4)]
    place = {"kind": "single", "estimator": "difference-of-means", "position": -1}
    candidates = [
        {"name": name, **place, "layer": i, "bypass": -1.0 * i, "stays": 0.4 / (i + 1), "induce": 1.0, "kl": 0.05 * (i + 1), "spill": 0.0}
        for i, name in enumerate(names)
    ]
    strength = [[min(1.0, layer / 6), max(0.0, layer / 6 - 1)] for layer in range(LAYERS)]
    front = [
        {"step": i, "weight": 1.0, "target_left": 0.9 / (i + 1), "keep_kl": 0.0, "kl": 0.02 * i, "kl_sequence": 0.01 * i, "edits": 1.0}
        for i in range(9)
    ]
    front = [{**point, "on_front": point["step"] % 2 == 0, "chosen": point["step"] == 4} for point in front]
    tuning = {
        "kind": "gradient",
        "seed": 0,
        "steps": 8,
        "prefer": "balanced",
        "max_kl": None,
        "history": [],
        "front": front,
        "examples": {"target": 8, "keep": 8, "baseline": 8, "harmless": 8},
        "strength": strength,
        "cosine_to_start": [[1 - layer / 40, 1 - layer / 30] for layer in range(LAYERS)],
    }
    scoped = {"sets": ["danger"], "lambda": 0.1, "share_left": 0.8, "cosine": {"danger": 0.4}}
    return {
        "chosen": candidates[1],
        "filters": {"max_kl": 0.1, "max_kl_in_force": 0.2, "max_layer": 0.8},
        "relaxed": ["KL bound to 0.2 nats"],
        "candidates": candidates,
        "strength": 1.0,
        "tuning": tuning if tuned else None,
        "yardstick": {"asked": 12, "withheld": 10, "base_logprob": -0.5},
        "scoped": scoped,
    }


def directions() -> dict[str, Any]:
    def curve(start: float) -> list[float]:
        return [0.5 + 0.5 * math.sin((start + layer) / 10) ** 2 for layer in range(LAYERS + 1)]

    positions = [-1, -2, -3]
    found = {
        "positions": positions,
        "auc": [curve(p) for p in range(3)],
        "norm": [curve(p) for p in range(3)],
        "cosine_keep": {"danger": [curve(p) for p in range(3)]},
        "stability": curve(3),
    }
    cloud = [[math.cos(i), math.sin(2 * i)] for i in range(20)]
    pca = {"index": 6, "position": -1, "explained": [0.5, 0.2], "target": cloud, "baseline": cloud[:9], "keep": {"danger": cloud[5:15]}}
    estimators = {"difference-of-means": found, "projected": {**found, "stability": None}}
    separation = {"estimator": "difference-of-means", "position": -2, "layer": 5}
    return {"positions": positions, "layers": LAYERS, "estimators": estimators, "separation": separation, "pca": pca}


def plain_rate(k: int, n: int) -> dict[str, Any]:
    return rate(k, n).document()


def run_report(tuned: bool = True) -> Made:
    """The report of a run with all parts: controls, a reference, benchmarks, tuning, directions."""
    base = {
        "hot": judged("hot", [NO] * 10 + [YES, LOOP]),
        "cold": judged("cold", [NO] * 2 + [YES] * 10),
        "danger": judged("danger", [NO] * 11 + [YES]),
        "plain": judged("plain", [YES] * 12),
    }
    edited = {
        "hot": judged("hot", [YES] * 9 + [NO, LOOP, LOOP]),
        "cold": judged("cold", [YES] * 12),
        "danger": judged("danger", [NO] * 7 + [YES] * 5),
        "plain": judged("plain", [YES] * 11 + [LOOP]),
    }
    drift = {"set": "plain", "ids": [f"plain-{i}" for i in range(12)], "kl_first_token": [0.01 * i for i in range(12)]}
    embedding = {"policy": "skip", "tied_to_unembedding": True}
    edit = {"tensors": 24, "worst_left": 1e-7, "worst_error": 1e-8, "embedding": embedding, "not_edited": ["model.embed: it is tied"]}
    controls = {
        "seeds": [0, 1, 2],
        "set": ["hot"],
        "n": 12,
        "n_withheld": 10,
        "same_first": {"edited": plain_rate(1, 10), "random": [plain_rate(9, 10), plain_rate(10, 10), plain_rate(10, 10)]},
        "kl_first_token": {"edited": 0.2, "random": [0.001, 0.002, 0.01]},
    }
    agreed, nothing = {"agree_base": plain_rate(1, 12), "agree_edited": plain_rate(8, 12)}, plain_rate(0, 0)
    distance = {"n": 12, "kl_base": 1.2, "kl_edited": 0.4, "gone": 0.667, **agreed}
    silent = {"n": 0, "kl_base": None, "kl_edited": None, "gone": None, "agree_base": nothing, "agree_edited": nothing}
    recovery = {
        "reference": "some/other",
        "agree_tokens": 32,
        "sets": {"hot": {"role": "target", **distance}, "danger": {"role": "keep", **silent}},
    }
    report = reported(run_record(), ROLES, base, edited, drift, selection(tuned), edit, 0.05, controls=controls, recovery=recovery)
    crossed = {"counts": {}, "shut": {"withheld": 9, "not_withheld": 1}, "open": {"withheld": 2, "not_withheld": 0}}
    report = changed(
        report,
        {
            "benchmarks": {"harness": "lm-eval 0.4", "asked": ["mmlu"], "tasks": {"mmlu": {"acc": {"base": 0.5, "edited": 0.49}}}},
            "not_measured": [path for path in report.not_measured if path != "benchmarks"],
            "directions": directions(),
            "sets.hot.base.at_tokens": [{"tokens": 16, "cut": 12, "refused": 9, "withheld": 9, "truncated": 0}],
            "thought_by_answer": {"hot": {"base": crossed, "edited": crossed}},
            "cost": {"seconds": {"selection": 120.0, "drift": 2.0}, "peak_rss_bytes": 10**9},
        },
    )
    return Made(report, base, edited, {"difference-of-means": [0.5] * 6 + [0.9] * 7})


def audit_report(base: dict[str, Judged] | None = None) -> Made:
    """The report of an audit: one model, nothing edited."""
    asked = base or {"hot": judged("hot", [NO] * 8 + [YES] * 4), "cold": judged("cold", [YES] * 12)}
    record = {**run_record(), "settings": {"model": "some/model", "prompts": list(asked), "limit": None}}
    report = reported(record, dict.fromkeys(asked, "audited"), asked, None, None, None, None, 0.05)
    report = changed(report, {"cost": {"seconds": {"transcripts (base)": 3.0}, "peak_rss_bytes": 10**9}})
    return Made(report, asked, None, None)


def weights_report() -> Made:
    """The report of a comparison without prompts: only what differs between the weights."""
    record = {**run_record(), "settings": {"base": "some/model", "derived": "some/edit", "weights_only": True}, "prompts": {}}
    report = reported(record, {}, {}, {}, None, None, None, 0.05)
    spread = {"min": 0.1, "median": 0.2, "max": 0.3}
    layers = [
        {"layer": i, "writers": 2, "agreement": 0.99, "explained": 0.99, "cos_to_mean": 0.98, "left": spread, "strength": spread}
        for i in range(4)
    ]
    counts = {"changed": {"attention": 4, "mlp": 4}, "same": {"norm": 9}, "recast": 0, "only_base": 0, "only_derived": 0, "reshaped": 0}
    spreads = {"relative": spread, "rank": spread, "left": spread, "strength": spread, "layers": layers, "over_layers": None}
    reasons = ["every changed tensor writes into the stream"]
    found = {"compared": True, "verdict": "directional", "reasons": reasons, **counts, **spreads}
    report = changed(report, {"weights": found, "cost": {"seconds": {"weights": 3.0}, "peak_rss_bytes": 10**9}})
    return Made(report, {}, {}, None)
