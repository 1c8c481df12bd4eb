"""Fit the package's linear models: multinomial logistic regression over named features, with an L2 penalty."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import log_softmax

LEAST = 3  # examples that hold a feature
SMALL = 0.02  # weights whose largest is below this are left out

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"


@dataclass(frozen=True)
class Example:
    """The features of a response, its class, and who wrote it."""

    found: dict[str, float]
    label: int
    writer: str
    weight: float


@dataclass(frozen=True)
class Fitted:
    """``names``: the row of each feature. ``weights`` [feature, class], ``bias`` [class]."""

    names: dict[str, int]
    weights: np.ndarray
    bias: np.ndarray

    def classes(self, of: Sequence[Example]) -> np.ndarray:
        """The likeliest class of each example."""
        found: np.ndarray = (matrix(of, self.names) @ self.weights + self.bias).argmax(1)
        return found

    def save(self, out: Path) -> int:
        """Write the weights as the package reads them; the number of features."""
        kept = np.abs(self.weights).max(1) >= SMALL
        chosen = [name for name, keep in zip(self.names, kept, strict=True) if keep]
        text = np.frombuffer(json.dumps(chosen, ensure_ascii=False).encode(), dtype=np.uint8)
        weights = self.weights[kept].astype(np.float16)
        save_file({"features": text.copy(), "weights": weights, "bias": self.bias.astype(np.float32)}, out)
        return len(chosen)


def rows(name: str) -> list[dict[str, object]]:
    """The lines of a data file."""
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def matrix(of: Sequence[Example], names: dict[str, int]) -> csr_matrix:
    """[example, feature]."""
    places = [(row, names[name], value) for row, e in enumerate(of) for name, value in e.found.items() if name in names]
    at, columns, values = zip(*places, strict=True)
    return csr_matrix((values, (at, columns)), shape=(len(of), len(names)))


def fit(of: Sequence[Example], classes: int, strength: float) -> Fitted:
    """The regression; ``strength`` weighs the examples against the penalty."""
    counts = Counter(name for e in of for name in e.found)
    names = {name: i for i, name in enumerate(sorted(name for name, n in counts.items() if n >= LEAST))}
    x, wanted = matrix(of, names), np.eye(classes)[[e.label for e in of]]
    scale = strength * np.array([e.weight for e in of])[:, None]
    shape = (len(names), classes)

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[:-classes].reshape(shape), flat[-classes:]
        logp = log_softmax(x @ weights + bias, axis=1)
        slope = (np.exp(logp) - wanted) * scale
        return float(-(scale * wanted * logp).sum() + (weights**2).sum() / 2), np.concatenate(
            [(x.T @ slope + weights).ravel(), slope.sum(0)]
        )

    found = minimize(cost, np.zeros(shape[0] * shape[1] + classes), jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    return Fitted(names, found[:-classes].reshape(shape), found[-classes:])
