"""The checkpoint to publish: its folder, its proof, its card, and the records of the run that made it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from abliterate.checkpoint.licence import CARD, licence_files
from abliterate.checkpoint.names import PROOF
from abliterate.checkpoint.records import Licence, Proof
from abliterate.errors import InputError, first_line
from abliterate.files import read_json
from abliterate.model.source import CHECKPOINT
from abliterate.report.model_index import keep_tests, name_on_hub

_OF_A_RUN = ("run.json", "report.json")


@dataclass(frozen=True)
class Checkpoint:
    """An edited checkpoint. ``run`` and ``report``: the contents of run.json and report.json beside it; None if there are no such files."""

    path: Path
    proof: Proof
    card: ModelCard
    run: Mapping[str, Any] | None
    report: Mapping[str, Any] | None = None

    @property
    def base(self) -> str:
        """The name of the base in the proof."""
        return self.proof.base_model

    @property
    def licence(self) -> Licence | None:
        """The licence that the base's folder stated; None in a proof of an older version."""
        return self.proof.licence

    @property
    def base_folder(self) -> Path | None:
        """The folder of the base during the run, if it still exists."""
        given = (self.run or {}).get("model_path")
        return Path(given) if given and Path(given).is_dir() else None

    @property
    def keep_tests(self) -> list[tuple[str, bool]]:
        """The keep sets and whether their tests held; empty if nothing was measured.

        Taken from the run's report and from the card, which people may edit: if the two differ, the test counts as not held.
        """
        found = {name_on_hub(str(test["set"])): test["holds"] is True for test in (self.report or {}).get("keep_tests") or ()}
        for name, holds in keep_tests(self.card.data.get("eval_results")):
            found[name] = holds and found.get(name, True)
        return list(found.items())

    @property
    def asked_to_keep(self) -> list[str]:
        """The keep sets in the settings of the run."""
        return [str(name) for name in ((self.run or {}).get("settings") or {}).get("keep") or ()]

    @property
    def licence_files(self) -> list[str]:
        return licence_files(self.path)


def find_checkpoint(given: Path) -> Checkpoint:
    """The checkpoint in a folder or in a run's folder. Raises InputError if there is none (yet), or if its card can't be read."""
    path = next((p for p in (given, given / CHECKPOINT) if (p / PROOF).is_file()), None)
    if path is None and (given / "run.json").is_file():
        ended = (given / "report.json").is_file()
        why = "nothing was edited here (an audit, or a comparison)" if ended else "unfinished run; repeat the run command to resume it"
        raise InputError(f"{given}: no checkpoint in it: {why}")
    if path is None:
        raise InputError(
            f"{given}: no {PROOF} in it or in its checkpoint folder; give a checkpoint that this program edited, or a run's folder"
        )
    if not (path / CARD).is_file():
        raise InputError(f"{path}: no {CARD}; a checkpoint isn't published without its card")
    around = Path(os.path.abspath(path)).parent  # noqa: PTH100  (also for "."; resolve() would follow a link away from the run)
    try:
        proof = Proof.read(path / PROOF)
        card = ModelCard((path / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=False)
        run, report = (read_json(around / file) if (around / file).is_file() else None for file in _OF_A_RUN)
        made = Checkpoint(path, proof, card, run, report)
        _ = made.keep_tests, made.asked_to_keep  # read here, so that malformed files give one line
    except Exception as error:  # files that people edit: not JSON, not YAML, not UTF-8
        raise InputError(f"{path}: {PROOF}, {CARD}, {_OF_A_RUN[0]} or {_OF_A_RUN[1]} can't be read ({first_line(error)})") from None
    return made
