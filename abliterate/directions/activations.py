"""The activations file: safetensors, with the positions and the hashes of the prompts in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from abliterate.directions.collect import SetActivations
from abliterate.directions.keys import GroupKey
from abliterate.errors import InputError


@dataclass(frozen=True)
class Activations:
    """Activations by role: directions are estimated from ``train`` and ranked on ``val``.

    There is a group for each role and each keep set, and if the prompts are in several languages, for target and baseline in each language.
    ``val`` holds every position of target and baseline, and the last position of harmless and of each keep set. ``categories``: one for
    each of the target's train prompts.
    """

    train: Mapping[GroupKey, SetActivations]
    val: Mapping[GroupKey, Float[Tensor, "prompt position layer_plus_1 d_model"]]
    positions: tuple[int, ...]
    hashes: Mapping[str, str]
    categories: tuple[str, ...] = ()


def save_activations(activations: Activations, path: Path) -> None:
    """Write the file: ``<group>_mean``, ``<group>_second_moment``, ``<group>_last``, and ``<group>_val`` for groups in ``val``. A group is
    called ``target``, ``target@en`` or ``keep/<set>``."""
    tensors: dict[str, Tensor] = {}
    for key, found in activations.train.items():
        tensors[f"{key}_mean"] = found.mean
        tensors[f"{key}_second_moment"] = found.second_moment
        tensors[f"{key}_last"] = found.last.contiguous()
    tensors |= {f"{key}_val": vectors.contiguous() for key, vectors in activations.val.items()}
    metadata = {
        "positions": json.dumps(activations.positions),
        "prompts": json.dumps(dict(activations.hashes)),
        "categories": json.dumps(activations.categories),
    }
    save_file(tensors, path, metadata)


def load_activations(path: Path) -> Activations:
    """Read the file back. ``train`` then has vectors at the last position only. Raises InputError for a file of another kind."""
    tensors, metadata = _read(path)
    groups = [name.removesuffix("_mean") for name in tensors if name.endswith("_mean")]
    train = {
        GroupKey.read(g): SetActivations(tensors[f"{g}_mean"], tensors[f"{g}_second_moment"], tensors[f"{g}_last"][:, None]) for g in groups
    }
    val = {GroupKey.read(name.removesuffix("_val")): t for name, t in tensors.items() if name.endswith("_val")}
    categories = tuple(json.loads(metadata.get("categories", "[]")))
    return Activations(train, val, tuple(json.loads(metadata["positions"])), json.loads(metadata["prompts"]), categories)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (float32) and the metadata. Raises InputError if the file is not an activations file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    needed = {f"{role}_{part}" for role in ("target", "baseline") for part in ("mean", "second_moment", "last")}
    if not needed <= tensors.keys() or not {"positions", "prompts"} <= metadata.keys():
        raise InputError(f"{path}: not an activations file; collect writes one")
    return tensors, metadata
