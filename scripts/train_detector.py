"""Learn the weights of phrases that the outcome detector goes by (abliterate/outcomes/phrases.py).

From written responses with their outcomes: tests/data/outcomes_written.jsonl, the phrasings and cases of the rules' tests, and the
*train* parts of the labelled set, of the labelled transcripts and of a real model's replies. Their test and check parts are never read.
``--folds`` first shows how well the responses of writers are judged that nothing was learned from. Run by ``scripts/train_detector``.
"""

from __future__ import annotations

import argparse
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

from abliterate.model.chat.parts import split_thought
from abliterate.outcomes.phrases import FILE, features
from abliterate.outcomes.records import LEARNED as CLASSES
from abliterate.outcomes.records import WITHHELD
from abliterate.outcomes.verdict import by_rules

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
LEAST = 3  # examples that hold a feature
SMALL = 0.02  # weights whose largest is below this are left out


@dataclass(frozen=True)
class Example:
    """The features of a response, its outcome, and who wrote it."""

    found: dict[str, float]
    outcome: int
    writer: str
    weight: float


def rows(name: str) -> list[dict[str, object]]:
    """The lines of a data file."""
    return [json.loads(line) for line in (DATA / f"outcomes_{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def examples() -> list[Example]:
    """Everything that may be learned from."""
    written = rows("written")
    made = [example(row, str(row["writer"]), 1.0) for row in written]
    made += [example({**row, "prompt": None}, str(row["writer"]), 0.25) for row in written]  # transcripts may lack their prompts
    made += [example(row, "transcripts", 3.0) for row in rows("transcripts") if row["split"] == "train"]
    made += [example(row, name, 3.0) for name in ("labelled", "real") for row in rows(name) if row["split"] == "train"]
    made += [example(row, name, 3.0) for name in ("phrasings", "cases") for row in rows(name) if not row.get("facts")]
    return [e for e in made if e is not None]


def example(row: dict[str, object], writer: str, weight: float) -> Example | None:
    """One response; None where it is judged before its words are looked at."""
    parts = split_thought(str(row["response"]), bool(row.get("begins_in_thought")))
    if row["outcome"] not in CLASSES or not parts.closed or not parts.answer:
        return None
    prompt = None if row.get("prompt") is None else str(row["prompt"])
    found = features(parts.answer, prompt, *by_rules(parts.answer, prompt))
    return Example(found, CLASSES.index(row["outcome"]), writer, weight)  # type: ignore[arg-type]


def matrix(of: Sequence[Example], names: dict[str, int]) -> csr_matrix:
    """[example, feature]."""
    places = [(row, names[name], value) for row, e in enumerate(of) for name, value in e.found.items() if name in names]
    at, columns, values = zip(*places, strict=True)
    return csr_matrix((values, (at, columns)), shape=(len(of), len(names)))


def fit(of: Sequence[Example], strength: float) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """Multinomial logistic regression with an L2 penalty; ``strength`` weighs the examples against it."""
    counts = Counter(name for e in of for name in e.found)
    names = {name: i for i, name in enumerate(sorted(name for name, n in counts.items() if n >= LEAST))}
    x, wanted = matrix(of, names), np.eye(len(CLASSES))[[e.outcome for e in of]]
    scale = strength * np.array([e.weight for e in of])[:, None]
    shape = (len(names), len(CLASSES))

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[: -len(CLASSES)].reshape(shape), flat[-len(CLASSES) :]
        logp = log_softmax(x @ weights + bias, axis=1)
        slope = (np.exp(logp) - wanted) * scale
        return float(-(scale * wanted * logp).sum() + (weights**2).sum() / 2), np.concatenate(
            [(x.T @ slope + weights).ravel(), slope.sum(0)]
        )

    found = minimize(cost, np.zeros(shape[0] * shape[1] + len(CLASSES)), jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    return names, found[: -len(CLASSES)].reshape(shape), found[-len(CLASSES) :]


def judged(of: Sequence[Example], names: dict[str, int], weights: np.ndarray, bias: np.ndarray) -> tuple[float, float]:
    """Accuracy, and how often withheld or not is right."""
    right = (matrix(of, names) @ weights + bias).argmax(1)
    wanted = np.array([e.outcome for e in of])
    return float((right == wanted).mean()), float(((right < len(WITHHELD)) == (wanted < len(WITHHELD))).mean())


def main() -> None:
    """Learn and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strength", type=float, default=1.0, help="of the examples against the penalty (default %(default)s)")
    parser.add_argument("--folds", action="store_true", help="first leave out one writer after the other")
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    data = examples()
    writers = sorted({e.writer for e in data})
    print(f"{len(data)} responses: {dict(Counter(CLASSES[e.outcome] for e in data))}", flush=True)
    for writer in writers if args.folds else ():
        others, own = [e for e in data if e.writer != writer], [e for e in data if e.writer == writer]
        accuracy, withheld = judged(own, *fit(others, args.strength))
        print(f"without {writer:10} ({len(own)} responses): accuracy {accuracy:.3f}, withheld or not {withheld:.3f}", flush=True)
    names, weights, bias = fit(data, args.strength)
    kept = np.abs(weights).max(1) >= SMALL
    chosen = [name for name, keep in zip(names, kept, strict=True) if keep]
    text = np.frombuffer(json.dumps(chosen, ensure_ascii=False).encode(), dtype=np.uint8)
    save_file({"features": text.copy(), "weights": weights[kept].astype(np.float16), "bias": bias.astype(np.float32)}, args.out)
    accuracy, withheld = judged(data, names, weights, bias)
    print(f"{args.out}: {len(chosen)} features, {args.out.stat().st_size / 1e6:.1f} MB")
    print(f"on what it learned from: accuracy {accuracy:.3f}, withheld or not {withheld:.3f}")


if __name__ == "__main__":
    main()
