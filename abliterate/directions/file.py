"""The directions file (safetensors): every estimate and its separation on val."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from abliterate.directions.estimate import Directions
from abliterate.directions.keep import Scoping
from abliterate.directions.keys import EstimateKey, by_language
from abliterate.errors import InputError
from abliterate.files import whole_file


def save_directions(directions: Directions, path: Path) -> None:
    """Write ``<estimator>`` [position, layer+1, d_model], ``<estimator>.auc`` and ``<estimator>.cohens_d`` [position, layer+1]; for
    subspaces also ``<estimator>.rows`` [position, layer+1, k, d_model]; for scoped directions also ``<estimator>.share`` and
    ``<estimator>.cosine/<set>`` [position, layer+1], with the rest of the scoping in the metadata."""
    tensors: dict[str, Tensor] = dict(directions.direction)
    tensors |= {f"{name}.auc": t for name, t in directions.auc.items()}
    tensors |= {f"{name}.cohens_d": t for name, t in directions.cohens_d.items()}
    tensors |= {f"{name}.rows": t for name, t in directions.rows.items()}
    said = {}
    for name, scoping in directions.scoping.items():
        tensors[f"{name}.share"] = scoping.share
        tensors |= {f"{name}.cosine/{set_}": scoping.cosine[set_] for set_ in scoping.sets}
        said[name] = {"sets": scoping.sets, "lambda": scoping.ridge, "min_share": scoping.min_share}
    metadata = {"estimates": json.dumps(list(directions.direction)), "scoping": json.dumps(said)}
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata)


def save_direction(direction: Tensor, path: Path) -> None:
    """Write a direction file: ``direction`` of shape [d_model] or [layer, d_model]. The file is written whole or not at all."""
    with whole_file(path) as partial:
        save_file({"direction": direction.float().contiguous()}, partial)


def load_directions(path: Path) -> Directions:
    """Read the file back. Raises InputError if an older version wrote the file, without this metadata."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    if not {"estimates", "scoping"} <= set(metadata or ()):
        raise InputError(f"{path}: made by an older version; run again into another --out")
    names = json.loads(metadata["estimates"])
    scoping = {}
    for name, said in json.loads(metadata["scoping"]).items():
        cosine = {set_: tensors[f"{name}.cosine/{set_}"] for set_ in said["sets"]}
        plain = str(replace(EstimateKey.read(name), scoped=False))
        scoping[name] = Scoping(plain, tuple(said["sets"]), said["lambda"], tensors[f"{name}.share"], cosine, said["min_share"])
    return Directions(
        direction={name: tensors[name] for name in names},
        auc={name: tensors[f"{name}.auc"] for name in names},
        cohens_d={name: tensors[f"{name}.cohens_d"] for name in names},
        rows={name: tensors[f"{name}.rows"] for name in names if f"{name}.rows" in tensors},
        scoping=scoping,
        by_language=by_language(map(EstimateKey.read, names)),
    )
