"""The directions file: every estimate and its separation on val, safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from abliterate.directions.candidates import Directions


def save_directions(directions: Directions, path: Path) -> None:
    """Write ``<estimator>`` [position, layer+1, d_model], ``<estimator>.auc`` and ``<estimator>.cohens_d`` [position, layer+1]."""
    tensors = {name: t.contiguous() for name, t in directions.direction.items()}
    tensors |= {f"{name}.auc": t.contiguous() for name, t in directions.auc.items()}
    tensors |= {f"{name}.cohens_d": t.contiguous() for name, t in directions.cohens_d.items()}
    save_file(tensors, path)


def load_directions(path: Path) -> Directions:
    """Read the file back."""
    tensors = load_file(path)
    names = [name.removesuffix(".auc") for name in tensors if name.endswith(".auc")]
    return Directions(
        direction={name: tensors[name] for name in names},
        auc={name: tensors[f"{name}.auc"] for name in names},
        cohens_d={name: tensors[f"{name}.cohens_d"] for name in names},
    )
