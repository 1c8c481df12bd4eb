"""Resolve what the user calls a model to a local folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from abliterate.errors import InputError
from abliterate.model.files import fetched
from abliterate.model.fixtures.refuser import BUILT_HERE
from abliterate.model.names import HUB_IDS

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"  # if it is there, transformers applies the adapter without being asked
CHECKPOINT = "checkpoint"  # in a run folder
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """A model on disk; ``hub_id`` and ``revision`` are set if it came from the Hub."""

    given: str
    path: Path
    hub_id: str | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """The model's name in cards and proofs: its Hub id, its short name, or the name of its folder."""
        return self.hub_id or (self.path.name if Path(self.given).expanduser().is_dir() else self.given)


def resolve_model(given: str, revision: str | None = None, weights: bool = True) -> ModelSource:
    """Find the model: a folder, a short name, or a Hub id (downloaded into the Hub's own cache). Without ``weights``, shards are
    downloaded only if there is no index that says what they hold.

    Raises InputError if there is no such model or the Hub can't be reached, and says which folder would do.
    """
    folder = check_given(given)
    if folder is not None:
        return ModelSource(given, folder.resolve())
    if given.lower() in BUILT_HERE:
        return ModelSource(given, BUILT_HERE[given.lower()]().resolve())
    return _from_hub(given, HUB_IDS.get(given.lower(), given), revision, weights)


def check_given(given: str) -> Path | None:
    """The given folder, or None for a short name or a Hub id; fetches and builds nothing.

    Raises InputError if it is none of these, or a folder without a model.
    """
    folder = _local(given) if given.strip() else None
    if folder is not None and folder.is_dir():
        check_no_adapter(folder)
        check_folder(folder)
        return folder
    if given.lower() in BUILT_HERE:
        return None
    hub_id = HUB_IDS.get(given.lower(), given)
    if folder is None or folder.is_file() or not _HUB_ID.fullmatch(hub_id) or given.startswith((".", "/", "~")):
        raise InputError(
            f"no model {given!r}: not a folder, not a Hub id (owner/name), not a short name "
            f"({', '.join([*BUILT_HERE, *list(HUB_IDS)[:3]])}, ...)"
        )
    return None


def check_folder(path: Path) -> None:
    """Raise InputError if the folder is missing or has no config.json; for a run folder, say where its checkpoint is."""
    if not path.is_dir():
        raise InputError(f"{path}: no such model folder")
    if (path / "config.json").is_file():
        return
    if (path / CHECKPOINT / "config.json").is_file():
        raise InputError(f"{path}: a run folder, not a model folder; its checkpoint is {path / CHECKPOINT}")
    if (path / "run.json").is_file():
        raise InputError(f"{path}: a run folder without a checkpoint; if the run isn't finished, run the same command again to resume")
    raise InputError(f"{path}: no config.json in it; give the folder of a transformers model")


def check_no_adapter(path: Path) -> None:
    """Raise InputError for a folder that holds an adapter, alone or beside a model."""
    if not (path / _ADAPTER).is_file():
        return
    if any((path / name).is_file() for name in (_SINGLE, _INDEX)):
        raise InputError(
            f"{path}: holds {_ADAPTER} beside full weights, and transformers would apply that adapter to them; if it is merged already, "
            "remove the adapter's files, else merge it (PEFT's merge_and_unload) into another folder"
        )
    raise InputError(
        f"{path}: holds an adapter ({_ADAPTER}), not a model; merge it into its base model (PEFT's merge_and_unload) and give the "
        "merged folder"
    )


def edited_folder(given: Path) -> Path:
    """An edited checkpoint's folder: the given one or, for a run folder, the checkpoint in it."""
    inside = given / CHECKPOINT
    return inside if not (given / "config.json").is_file() and (inside / "config.json").is_file() else given


def _local(given: str) -> Path | None:
    """The name as a path; None if it can't be one."""
    try:
        folder = Path(given).expanduser()
        folder.exists()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a null character
        return None
    return folder


def _from_hub(given: str, hub_id: str, revision: str | None, weights: bool) -> ModelSource:
    from huggingface_hub import snapshot_download

    def fetch(weights: bool) -> Path:
        wanted, never = fetched(weights)
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted, ignore_patterns=never))

    try:
        path = fetch(weights)
        if not weights and not (path / _INDEX).is_file():
            path = fetch(True)
    except Exception as error:  # the Hub's client raises many kinds of exception: offline, unknown, gated, interrupted
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{hub_id} can't be downloaded from the Hub ({type(error).__name__}: {reason[:120]}); download it elsewhere and give "
            "--model FOLDER, a folder that holds its config.json, tokenizer files and *.safetensors"
        ) from None
    return ModelSource(given, path, hub_id, path.name if path.parent.name == "snapshots" else revision)
