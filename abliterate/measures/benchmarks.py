"""Public benchmarks (MMLU, GSM8K, ...) before and after the edit, with EleutherAI's lm-evaluation-harness if it is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from abliterate.errors import InputError, first_line
from abliterate.files import Json
from abliterate.measures.parts.moved import Benchmarks, Scored
from abliterate.terminal.progress import stage

Scores = dict[str, dict[str, float]]  # by task and metric; standard errors are separate metrics, like "acc_stderr"


@dataclass(frozen=True)
class Harness:
    """The tasks, and how to load the models for them; ``dtype`` and ``device`` are torch's names."""

    tasks: Sequence[str]
    dtype: str
    device: str
    trust_remote_code: bool = False

    def measure(self, folder: Path) -> Scores:
        """The scores of the model in a folder. Raises InputError if lm-eval is not installed, doesn't know a task, or fails."""
        check_installed()
        from lm_eval import simple_evaluate

        loading = {"pretrained": str(folder), "dtype": self.dtype, "trust_remote_code": self.trust_remote_code}
        try:
            with stage(f"lm-eval: {', '.join(self.tasks)}, {folder.name}", 1) as advance:
                found = simple_evaluate(model="hf", model_args=loading, tasks=list(self.tasks), device=self.device, batch_size="auto")
                advance(1)
        except Exception as error:  # unknown tasks, failed downloads, out of memory
            raise InputError(f"--lm-eval {' '.join(self.tasks)}: lm-eval failed ({first_line(error)}); finished scores are kept") from error
        return scores_of(found)


def scores_of(found: Json | None) -> Scores:
    """The figures from lm-eval's results. Its metrics end with a filter name: ``acc,none`` becomes ``acc``, other filters are kept."""
    results = (found or {}).get("results") or {}
    return {str(task): _figures(row) for task, row in results.items() if _figures(row)}


def _figures(row: Json) -> dict[str, float]:
    numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    return {key.removesuffix(",none"): float(value) for key, value in numbers.items() if "," in key}


def side_by_side(tasks: Sequence[str], base: Scores, edited: Scores | None) -> Benchmarks:
    """The ``benchmarks`` entry of the report: the figures of both models, by task and metric."""
    after = edited or {}
    rows = {
        task: {metric: Scored(base=value, edited=after.get(task, {}).get(metric)) for metric, value in row.items()}
        for task, row in base.items()
    }
    return Benchmarks(harness=f"lm-eval {version()}", asked=tuple(tasks), tasks=rows)


def check_installed() -> None:
    """Raises InputError if lm-eval is not installed. Does not import it, because that takes long."""
    if "lm_eval" not in sys.modules and importlib.util.find_spec("lm_eval") is None:
        raise InputError("--lm-eval: lm-eval is not installed; pip install 'abliterate[lm-eval]'")


def version() -> str | None:
    """lm-eval's version, or None if its package has no metadata."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("lm-eval")
    return None
