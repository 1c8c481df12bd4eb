"""The final test's figures in the Hub's ``model-index`` format.

A set's refused or withheld rate is one result: the edited model's, with the base's beside it. A keep set's result also says whether its
test held, so that the card alone tells it. Format: https://github.com/huggingface/hub-docs, modelcard.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult

from abliterate.files import Json
from abliterate.measures.parts.rates import Measure
from abliterate.outcomes.records import NOT_JUDGED
from abliterate.report.numbers import outcome
from abliterate.report.tree.report import Report

TASK = "text-generation"


def eval_results(report: Report) -> list[EvalResult]:
    """One result per set and figure; sets without an edited side give none."""
    return [*_rates(report), *_drift(report)]


def _rates(report: Report) -> Iterator[EvalResult]:
    tests = {test.set: test for test in report.keep_tests}
    for name, entry in report.sets.items():
        if entry.edited is None:
            continue
        measures: tuple[Measure, ...] = (entry.measure, "degenerate")
        for key in measures:
            before, after = entry.base.rate(key), entry.edited.rate(key)
            if after.rate is None or before.rate is None:
                continue
            base = {"rate": _round(before.rate), "k": before.k}
            about: Json = {"ci95": _rounded(after.ci95), "k": after.k, "n": after.n, "base": base}
            if unknown := entry.edited.outcomes.not_judged:
                about[NOT_JUDGED] = unknown
            if key == "refused" and name in tests:
                test = tests[name]
                about["keep_test"] = {"margin": test.margin, "upper_bound": _round(test.upper_bound), "holds": test.holds}
                if groups := test.clusters:
                    about["keep_test"]["clusters"] = f"{groups.count} by {groups.unit}"
            yield _result(name, f"{key}_rate", f"share of prompts whose reply is {outcome(key)}", after.rate, about, entry.role)


def _drift(report: Report) -> Iterator[EvalResult]:
    drift = report.drift
    for key, words in (
        ("kl_first_token", "KL(base‖edited) of the first token, nats"),
        ("kl_sequence", "KL(base‖edited) along the base's own replies, nats per token"),
    ):
        if drift and (found := drift.mean(key)):
            yield _result(drift.set, key, words, found[0], {"ci95": _rounded(found[1]), "n": drift.n}, "harmless")


def _result(name: str, metric: str, words: str, value: float, about: Json, role: str) -> EvalResult:
    flat = name_on_hub(name)
    return EvalResult(
        task_type=TASK,
        dataset_type=flat,
        dataset_name=flat,
        dataset_split="test",
        dataset_args={"role": role},
        metric_type=metric,
        metric_name=words,
        metric_value=_round(value),
        metric_args=about,
    )


def name_on_hub(name: str) -> str:
    """A set's name for a card's results, with unusual characters replaced by hyphens."""
    return re.sub(r"[^\w .,:+-]+", "-", " ".join(name.split()))


def _round(value: float) -> float:
    return round(value, 4)


def _rounded(values: Any) -> Any:
    return [_round(value) for value in values] if values is not None else None


def keep_tests(results: Any) -> list[tuple[str, bool]]:
    """The keep sets of a card's results and whether their tests held. ``results``: ``ModelCardData.eval_results``, or None."""
    found = []
    for result in results or ():
        test = (result.metric_args or {}).get("keep_test") if isinstance(result.metric_args, Mapping) else None
        if isinstance(test, Mapping) and isinstance(test.get("holds"), bool):
            found.append((str(result.dataset_name), bool(test["holds"])))
    return found
