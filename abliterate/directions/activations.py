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
from abliterate.errors import InputError


@dataclass(frozen=True)
class Activations:
    """Activations by role: directions are estimated from ``train`` and ranked on ``val``.

    Roles are ``target``, ``baseline``, ``harmless`` and ``keep``. If the prompts are in several languages, ``target@en`` and the like hold
    one language each; ``keep/<set>`` holds one keep set. ``val`` holds every position of target and baseline, and the last position of
    ``harmless`` and ``keep/<set>``. ``categories``: one for each of the target's train prompts.
    """

    train: Mapping[str, SetActivations]
    val: Mapping[str, Float[Tensor, "prompt position layer_plus_1 d_model"]]
    positions: tuple[int, ...]
    hashes: Mapping[str, str]
    categories: tuple[str, ...] = ()


def save_activations(activations: Activations, path: Path) -> None:
    """Write the file: ``<role>_mean``, ``<role>_second_moment``, ``<role>_last``, and ``<role>_val`` for roles in ``val``."""
    tensors: dict[str, Tensor] = {}
    for role, found in activations.train.items():
        tensors[f"{role}_mean"] = found.mean
        tensors[f"{role}_second_moment"] = found.second_moment
        tensors[f"{role}_last"] = found.last.contiguous()
    tensors |= {f"{role}_val": vectors.contiguous() for role, vectors in activations.val.items()}
    metadata = {
        "positions": json.dumps(activations.positions),
        "prompts": json.dumps(dict(activations.hashes)),
        "categories": json.dumps(activations.categories),
    }
    save_file(tensors, path, metadata)


def load_activations(path: Path) -> Activations:
    """Read the file back. ``train`` then has vectors at the last position only. Raises InputError for a file of another kind."""
    tensors, metadata = _read(path)
    roles = [name.removesuffix("_mean") for name in tensors if name.endswith("_mean")]
    train = {r: SetActivations(tensors[f"{r}_mean"], tensors[f"{r}_second_moment"], tensors[f"{r}_last"][:, None]) for r in roles}
    val = {name.removesuffix("_val"): t for name, t in tensors.items() if name.endswith("_val")}
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
