"""What is to be published: the checkpoint's folder, its proof, its card, and what the run says that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from abliterate.checkpoint.licence import CARD, licence_files
from abliterate.checkpoint.proof import NAME as PROOF
from abliterate.errors import InputError, first_line
from abliterate.report.document import read_json
from abliterate.report.model_index import keep_tests


@dataclass(frozen=True)
class Checkpoint:
    """An edited checkpoint. ``run`` is the content of the run.json beside it; None where it lies alone."""

    path: Path
    proof: Mapping[str, Any]
    card: ModelCard
    run: Mapping[str, Any] | None

    @property
    def base(self) -> str:
        """What its proof calls the base."""
        return str(self.proof["base_model"])

    @property
    def base_folder(self) -> Path | None:
        """Where the base lay when the run was made, if it still does."""
        given = (self.run or {}).get("model_path")
        return Path(given) if given and Path(given).is_dir() else None

    @property
    def keep_tests(self) -> list[tuple[str, bool]]:
        """The keep sets and whether their tests held, as the card has them; empty where nothing of it was measured."""
        return keep_tests(self.card.data.get("eval_results"))

    @property
    def licence_files(self) -> list[str]:
        return licence_files(self.path)


def find_checkpoint(given: Path) -> Checkpoint:
    """The checkpoint in a folder or in the folder of a run. Raises InputError where there is none of ours, or its card can't be read."""
    path = next((p for p in (given, given / "checkpoint") if (p / PROOF).is_file()), None)
    if path is None:
        raise InputError(
            f"{given}: no {PROOF} in it or in its checkpoint folder; give a checkpoint that this program edited, or a run's folder"
        )
    if not (path / CARD).is_file():
        raise InputError(f"{path}: no {CARD}; a checkpoint isn't published without its card")
    record = path.parent / "run.json"
    try:
        proof = read_json(path / PROOF)
        card = ModelCard((path / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=False)
        run = read_json(record) if record.is_file() else None
    except Exception as error:  # files that people edit: not JSON, not YAML, not UTF-8
        raise InputError(f"{path}: {PROOF}, {CARD} or run.json can't be read ({first_line(error)})") from None
    return Checkpoint(path, proof, card, run)
