"""Public benchmarks (MMLU, GSM8K, ...) before and after, by EleutherAI's lm-evaluation-harness where it is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abliterate.errors import InputError, first_line
from abliterate.terminal.progress import stage

Scores = dict[str, dict[str, float]]  # by task and metric; a standard error is a metric of its own, "acc_stderr"


@dataclass(frozen=True)
class Harness:
    """The tasks, and how the models are loaded for them: ``dtype`` and ``device`` as torch calls them."""

    tasks: Sequence[str]
    dtype: str
    device: str
    trust_remote_code: bool = False

    def measure(self, folder: Path) -> Scores:
        """The scores of the model in a folder. Raises InputError where lm-eval is not there, doesn't know a task, or fails."""
        check_installed()
        from lm_eval import simple_evaluate

        loading = {"pretrained": str(folder), "dtype": self.dtype, "trust_remote_code": self.trust_remote_code}
        try:
            with stage(f"lm-eval: {', '.join(self.tasks)}, {folder.name}", 1) as advance:
                found = simple_evaluate(model="hf", model_args=loading, tasks=list(self.tasks), device=self.device, batch_size="auto")
                advance(1)
        except Exception as error:  # tasks that don't exist, data that can't be downloaded, memory that runs out
            raise InputError(f"--lm-eval {' '.join(self.tasks)}: lm-eval failed ({first_line(error)}); what is finished is kept") from error
        return scores_of(found)


def scores_of(found: Mapping[str, Any] | None) -> Scores:
    """The figures of lm-eval's results, whose metrics carry the name of a filter: ``acc,none`` is ``acc``, others keep theirs."""
    results = (found or {}).get("results") or {}
    return {str(task): _figures(row) for task, row in results.items() if _figures(row)}


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    return {key.removesuffix(",none"): float(value) for key, value in numbers.items() if "," in key}


def side_by_side(tasks: Sequence[str], base: Scores, edited: Scores | None) -> dict[str, Any]:
    """The report's ``benchmarks``: by task and metric the figure of each model."""
    after = edited or {}
    rows = {
        task: {metric: {"base": value, "edited": after.get(task, {}).get(metric)} for metric, value in row.items()}
        for task, row in base.items()
    }
    return {"harness": f"lm-eval {version()}", "asked": list(tasks), "tasks": rows}


def check_installed() -> None:
    """Raises InputError where lm-eval is not there; it is not imported, which takes long."""
    if "lm_eval" not in sys.modules and importlib.util.find_spec("lm_eval") is None:
        raise InputError("--lm-eval: lm-eval is not installed; pip install 'abliterate[lm-eval]'")


def version() -> str | None:
    """lm-eval's version, or None where it says none."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("lm-eval")
    return None
