"""Measure the directions of collected activations, and write one of them to a file."""

from __future__ import annotations

from pathlib import Path

from abliterate.config import DirectionsConfig
from abliterate.directions.activations import load_activations
from abliterate.directions.document import DirectionsQuality
from abliterate.directions.file import save_direction
from abliterate.directions.one import one_direction
from abliterate.directions.quality import measured, quality_document
from abliterate.errors import InputError
from abliterate.files import check_new


def directions(config: DirectionsConfig, given: Path, out: Path | None = None) -> DirectionsQuality:
    """The quality of the directions of collected activations, as in directions.json; writes one of them to the direction file ``out``.

    ``given``: an activations file or a run folder.
    """
    if out is not None:
        check_new(out)
    if (out is None) != (config.estimator is None):
        raise InputError("--out DIR_FILE and --estimator NAME go together: the file, and the estimator of the direction written to it")
    activations = load_activations(given / "activations.safetensors" if given.is_dir() else given)
    found = measured(activations, config.estimators)
    if out is not None:
        direction = one_direction(found, str(config.estimator), config.layer, config.position)
        out.parent.mkdir(parents=True, exist_ok=True)
        save_direction(direction, out)
    return quality_document(activations, found)
