"""Learn the weights by which an answer's worth is told (abliterate/outcomes/worth).

From answers to the bundled political questions and their controls, each labelled by hand: those that writers wrote
(tests/data/worth_written.jsonl, prompts of the splits train and val) and the *train* part of the real models' replies
(tests/data/outcomes_models.jsonl). Its test part is never read. ``--folds`` first shows how well the answers of writers are judged that
nothing was learned from. Run by ``scripts/train_worth``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fit_linear import Example, Fitted, fit, rows

from abliterate.model.chat.parts import split_thought
from abliterate.outcomes.worth.features import Answer, features
from abliterate.outcomes.worth.records import NAMES
from abliterate.outcomes.worth.worth import FILE


def examples() -> list[Example]:
    """Everything that may be learned from."""
    written = [(row, str(row["writer"])) for row in rows("worth_written")]
    replies = [(row, "models") for row in rows("outcomes_models") if row["split"] == "train" and row.get("worth")]
    return [example(row, writer) for row, writer in [*written, *replies]]


def example(row: dict[str, object], writer: str) -> Example:
    """One answer."""
    answer = split_thought(str(row["response"]), False).answer
    given = Answer(answer, str(row["prompt"]), tuple(row["facts"]), row.get("official"))  # type: ignore[arg-type]
    return Example(features(given), NAMES.index(row["worth"]), writer, 1.0)  # type: ignore[arg-type]


def judged(of: Sequence[Example], fitted: Fitted) -> tuple[float, float, float]:
    """Accuracy, macro-F1 over the worths that occur, and how often invented or not is right."""
    pairs = [(int(said), e.label) for said, e in zip(fitted.classes(of), of, strict=True)]
    scores = []
    for name in sorted({wanted for _, wanted in pairs}):
        right = sum(said == wanted == name for said, wanted in pairs)
        wrong = sum((said == name) != (wanted == name) for said, wanted in pairs)
        scores.append(2 * right / (2 * right + wrong))
    invented = NAMES.index("invented")
    told = [(said == invented) == (wanted == invented) for said, wanted in pairs]
    return sum(said == wanted for said, wanted in pairs) / len(pairs), sum(scores) / len(scores), sum(told) / len(told)


def main() -> None:
    """Learn and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strength", type=float, default=1.0, help="of the examples against the penalty (default %(default)s)")
    parser.add_argument("--folds", action="store_true", help="first leave out one writer after the other")
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    data = examples()
    print(f"{len(data)} answers: {dict(Counter(NAMES[e.label] for e in data))}", flush=True)
    for writer in sorted({e.writer for e in data}) if args.folds else ():
        others, own = [e for e in data if e.writer != writer], [e for e in data if e.writer == writer]
        accuracy, f1, invented = judged(own, fit(others, len(NAMES), args.strength))
        print(f"without {writer:10} ({len(own)}): accuracy {accuracy:.3f}, macro-F1 {f1:.3f}, invented or not {invented:.3f}", flush=True)
    fitted = fit(data, len(NAMES), args.strength)
    print(f"{args.out}: {fitted.save(args.out)} features, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
