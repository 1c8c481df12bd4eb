"""Forecast what a run would read, write, hold and compute, and how long it would take."""

from __future__ import annotations

from pathlib import Path

from abliterate.config import PlanConfig
from abliterate.files import check_new, write_json
from abliterate.forecast.forecast import as_json, forecast_run
from abliterate.forecast.text import lines
from abliterate.model.source import resolve_model


def plan(config: PlanConfig, figures: Path | None = None) -> list[str]:
    """The forecast of a run as lines of text. ``figures``: also write all figures to this file, as JSON."""
    if figures is not None:
        check_new(figures, "--json")
    made = forecast_run(config, resolve_model(config.model, config.revision, weights=False).path)
    if figures is not None:
        write_json(as_json(made), figures)
    return lines(made)
