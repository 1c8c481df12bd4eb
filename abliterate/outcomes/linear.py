"""A multinomial logistic regression over named features, whose weights come with the package as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors import safe_open


@dataclass(frozen=True)
class Linear:
    """``rows``: the row of each feature. ``weights``: by feature and class. ``bias``: by class."""

    rows: Mapping[str, int]
    weights: Float[np.ndarray, "feature class"]
    bias: Float[np.ndarray, " class"]

    def known(self, found: Mapping[str, float]) -> list[tuple[str, int, float]]:
        """The features that have weights: name, row and value."""
        return [(name, self.rows[name], value) for name, value in found.items() if name in self.rows]

    def logits(self, found: Mapping[str, float]) -> Float[np.ndarray, " class"]:
        """Unnormalised log-probabilities of the classes."""
        return self.bias + sum((value * self.weights[row] for _, row, value in self.known(found)), np.zeros(len(self.bias)))


def read_linear(path: Path) -> Linear:
    """Read a model that ``scripts/fit_linear.py`` wrote."""
    with safe_open(path, framework="numpy") as file:
        names = json.loads(bytes(file.get_tensor("features")).decode())
        weights, bias = file.get_tensor("weights"), file.get_tensor("bias")
    return Linear({name: row for row, name in enumerate(names)}, weights.astype(np.float64), bias.astype(np.float64))
