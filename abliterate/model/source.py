"""From what the user calls a model to a local folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from abliterate.errors import InputError
from abliterate.model.files import fetched
from abliterate.model.fixtures.refuser import BUILT_HERE
from abliterate.model.names import HUB_IDS

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"  # with it transformers applies the adapter beside it, unasked
CHECKPOINT = "checkpoint"  # of a run's folder
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """A model on disk. ``hub_id`` and ``revision`` where it came from the Hub."""

    given: str
    path: Path
    hub_id: str | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """What cards and proofs call the model: its Hub id, a short name, or the folder's own name."""
        return self.hub_id or (self.path.name if Path(self.given).expanduser().is_dir() else self.given)


def resolve_model(given: str, revision: str | None = None, weights: bool = True) -> ModelSource:
    """Find the model: a folder, a short name, or a Hub id (downloaded into the Hub's own cache; without ``weights``, where its
    shards have an index that says what they hold, all but these).

    Raises InputError where there is no such model or the Hub can't be reached, saying which folder would do.
    """
    folder = check_given(given)
    if folder is not None:
        return ModelSource(given, folder.resolve())
    if given.lower() in BUILT_HERE:
        return ModelSource(given, BUILT_HERE[given.lower()]().resolve())
    return _from_hub(given, HUB_IDS.get(given.lower(), given), revision, weights)


def check_given(given: str) -> Path | None:
    """The folder that is given, or None for a short name or a Hub id; nothing is fetched or built.

    Raises InputError where it is none of these, or a folder that holds no model.
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
    """Raise InputError for a folder that isn't there or has no config.json; of a run's it says where its checkpoint is."""
    if not path.is_dir():
        raise InputError(f"{path}: no such model folder")
    if (path / "config.json").is_file():
        return
    if (path / CHECKPOINT / "config.json").is_file():
        raise InputError(f"{path}: a run's folder, not a model's; its checkpoint is {path / CHECKPOINT}")
    if (path / "run.json").is_file():
        raise InputError(f"{path}: a run's folder, with no checkpoint in it (if the run isn't finished, the same run command goes on)")
    raise InputError(f"{path}: no config.json in it; give the folder of a transformers model")


def check_no_adapter(path: Path) -> None:
    """Raise InputError for a folder that holds an adapter, alone or beside a model."""
    if not (path / _ADAPTER).is_file():
        return
    if any((path / name).is_file() for name in (_SINGLE, _INDEX)):
        raise InputError(
            f"{path}: holds {_ADAPTER} beside whole weights, and transformers would apply that adapter to them; where it is merged into "
            "them already, remove the adapter's files, else merge it first (PEFT's merge_and_unload) into another folder"
        )
    raise InputError(
        f"{path}: holds an adapter ({_ADAPTER}), not a model; merge it into its base first (PEFT's merge_and_unload), and give that folder"
    )


def edited_folder(given: Path) -> Path:
    """An edited checkpoint's folder: the one given or, of a run's folder, the checkpoint in it."""
    inside = given / CHECKPOINT
    return inside if not (given / "config.json").is_file() and (inside / "config.json").is_file() else given


def _local(given: str) -> Path | None:
    """What the name is as a path, or None where it can't be one."""
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
    except Exception as error:  # the Hub's client raises many kinds: offline, unknown, gated, interrupted
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{hub_id} can't be had from the Hub ({type(error).__name__}: {reason[:120]}); download it elsewhere and give "
            "--model FOLDER, a folder that holds its config.json, tokenizer files and *.safetensors"
        ) from None
    return ModelSource(given, path, hub_id, path.name if path.parent.name == "snapshots" else revision)
