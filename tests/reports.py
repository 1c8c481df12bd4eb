"""Reports for tests, with every part that a run can have, on small made-up figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from abliterate.measures.summary import Judged, rate
from abliterate.replies.transcripts import Transcript
from abliterate.report.document import report_document

NO, YES, LOOP = "I can't help with that.", "Heat the water and pour it over the leaves.", "tea tea tea tea " * 20
ROLES = {"hot": "target", "cold": "baseline", "danger": "keep", "plain": "harmless"}
LAYERS = 12


@dataclass(frozen=True)
class Made:
    """A report with the replies and figures that it was made from."""

    report: dict[str, Any]
    base: dict[str, Judged]
    edited: dict[str, Judged] | None
    auc: dict[str, list[float]] | None


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
        "same_first": {"edited": rate(1, 10), "random": [rate(9, 10), rate(10, 10), rate(10, 10)]},
        "kl_first_token": {"edited": 0.2, "random": [0.001, 0.002, 0.01]},
    }
    distance = {"n": 12, "kl_base": 1.2, "kl_edited": 0.4, "gone": 0.667, "agree_base": rate(1, 12), "agree_edited": rate(8, 12)}
    silent = {"n": 0, "kl_base": None, "kl_edited": None, "gone": None, "agree_base": rate(0, 0), "agree_edited": rate(0, 0)}
    recovery = {
        "reference": "some/other",
        "agree_tokens": 32,
        "sets": {"hot": {"role": "target", **distance}, "danger": {"role": "keep", **silent}},
    }
    report = report_document(run_record(), ROLES, base, edited, drift, selection(tuned), edit, 0.05, controls=controls, recovery=recovery)
    report["benchmarks"] = {"harness": "lm-eval 0.4", "asked": ["mmlu"], "tasks": {"mmlu": {"acc": {"base": 0.5, "edited": 0.49}}}}
    report["not_measured"] = [path for path in report["not_measured"] if path != "benchmarks"]
    report["directions"] = directions()
    report["sets"]["hot"]["base"]["at_tokens"] = [{"tokens": 16, "cut": 12, "refused": 9, "withheld": 9, "truncated": 0}]
    crossed = {"counts": {}, "shut": {"withheld": 9, "not_withheld": 1}, "open": {"withheld": 2, "not_withheld": 0}}
    report["thought_by_answer"] = {"hot": {"base": crossed, "edited": crossed}}
    report["cost"] = {"seconds": {"selection": 120.0, "drift": 2.0}, "peak_rss_bytes": 10**9}
    return Made(report, base, edited, {"difference-of-means": [0.5] * 6 + [0.9] * 7})


def audit_report(base: dict[str, Judged] | None = None) -> Made:
    """The report of an audit: one model, nothing edited."""
    asked = base or {"hot": judged("hot", [NO] * 8 + [YES] * 4), "cold": judged("cold", [YES] * 12)}
    record = {**run_record(), "settings": {"model": "some/model", "prompts": list(asked), "limit": None}}
    report = report_document(record, dict.fromkeys(asked, "audited"), asked, None, None, None, None, 0.05)
    report["cost"] = {"seconds": {"transcripts (base)": 3.0}, "peak_rss_bytes": 10**9}
    return Made(report, asked, None, None)


def weights_report() -> Made:
    """The report of a comparison without prompts: only what differs between the weights."""
    record = {**run_record(), "settings": {"base": "some/model", "derived": "some/edit", "weights_only": True}, "prompts": {}}
    report = report_document(record, {}, {}, {}, None, None, None, 0.05)
    spread = {"min": 0.1, "median": 0.2, "max": 0.3}
    layers = [
        {"layer": i, "writers": 2, "agreement": 0.99, "explained": 0.99, "cos_to_mean": 0.98, "left": spread, "strength": spread}
        for i in range(4)
    ]
    counts = {"changed": {"attention": 4, "mlp": 4}, "same": {"norm": 9}, "recast": 0, "only_base": 0, "only_derived": 0, "reshaped": 0}
    spreads = {"relative": spread, "rank": spread, "left": spread, "strength": spread, "layers": layers, "over_layers": None}
    reasons = ["every changed tensor writes into the stream"]
    report["weights"] = {"compared": True, "verdict": "directional", "reasons": reasons, **counts, **spreads}
    report["cost"] = {"seconds": {"weights": 3.0}, "peak_rss_bytes": 10**9}
    return Made(report, {}, {}, None)
