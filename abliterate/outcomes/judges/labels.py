"""A map from a classifier's labels to outcomes, given on the command line or in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abliterate.errors import InputError, first_line
from abliterate.outcomes.judges.judge import outcome_named
from abliterate.outcomes.records import GIVEN, Outcome

READS = ("answer", "pair")


@dataclass(frozen=True)
class Labels:
    """``given``: names of outcomes by label; None if the labels are names of outcomes. ``reads``: whether the classifier reads the answer
    alone (``answer``) or prompt and answer (``pair``); None: its config decides."""

    given: Mapping[str, str] | None = None
    reads: str | None = None

    def outcomes(self, labels: Sequence[str]) -> tuple[Outcome, ...]:
        """The outcome of each of a model's labels, in their order. Raises InputError for a label without an outcome."""
        given = {label: label for label in labels} if self.given is None else self.given
        if unknown := [label for label in given if label not in labels]:
            raise InputError(f"label map: the classifier has no label {unknown[0]!r}; it has {', '.join(labels)}")
        found = [(label, given.get(label)) for label in labels]
        of = [(label, None if word is None else outcome_named(word)) for label, word in found]
        if missing := [label for label, outcome in of if outcome is None]:
            raise InputError(
                f"classifier: the label {missing[0]!r} maps to no outcome; map each label to {', '.join(GIVEN)} "
                f"(@{labels[0]}=refused,{labels[-1]}=answered or a JSON file)"
            )
        return tuple(outcome for _, outcome in of if outcome is not None)


def read_labels(given: str) -> Labels:
    """Read a label map: ``LABEL=outcome,...``, a JSON object, or a file that holds one.

    The object maps labels to outcomes, or holds that map under ``labels`` and ``"reads": "answer" | "pair"`` beside it. Raises InputError.
    """
    if not given.lstrip().startswith("{"):
        if "=" in given and not Path(given).is_file():
            pairs = [part.partition("=") for part in given.split(",")]
            return Labels({label.strip(): word.strip() for label, _, word in pairs})
        if not Path(given).is_file():
            raise InputError(f"label map {given!r}: no such file; give LABEL=outcome,... or a JSON file")
    where = "label map" if given.lstrip().startswith("{") else given
    try:
        content = json.loads(given if where == "label map" else Path(given).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({first_line(error)})") from None
    return _labels(content, where)


def _labels(content: Any, where: str) -> Labels:
    reads = None
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        content, reads = content["labels"], content.get("reads")
    if not isinstance(content, dict) or not content or not all(isinstance(word, str) for word in content.values()):
        raise InputError(f"{where}: must be a JSON object that maps labels to outcomes")
    if reads is not None and reads not in READS:
        raise InputError(f"{where}: 'reads' must be {' or '.join(READS)}")
    return Labels(content, reads)
