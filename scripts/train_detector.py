"""Learn the weights of phrases that the outcome detector goes by (abliterate/outcomes/phrases.py).

From written responses with their outcomes: tests/data/outcomes_written.jsonl, the phrasings and cases of the rules' tests, and the
*train* parts of the labelled set, of the labelled transcripts and of the real models' replies. Their test and check parts are never read.
``--folds`` first shows how well the responses of writers are judged that nothing was learned from. Run by ``scripts/train_detector``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fit_linear import Example, Fitted, fit, rows

from abliterate.model.chat.parts import split_thought
from abliterate.outcomes.phrases import FILE, features
from abliterate.outcomes.records import LEARNED as CLASSES
from abliterate.outcomes.records import WITHHELD
from abliterate.outcomes.verdict import by_rules


def examples() -> list[Example]:
    """Everything that may be learned from."""
    written = rows("outcomes_written")
    made = [example(row, str(row["writer"]), 1.0) for row in written]
    made += [example({**row, "prompt": None}, str(row["writer"]), 0.25) for row in written]  # transcripts may lack their prompts
    made += [example(row, "transcripts", 3.0) for row in rows("outcomes_transcripts") if row["split"] == "train"]
    made += [
        example(row, name, 3.0) for name in ("labelled", "real", "models") for row in rows(f"outcomes_{name}") if row["split"] == "train"
    ]
    made += [example(row, name, 3.0) for name in ("phrasings", "cases") for row in rows(f"outcomes_{name}") if not row.get("facts")]
    return [e for e in made if e is not None]


def example(row: dict[str, object], writer: str, weight: float) -> Example | None:
    """One response; None where it is judged before its words are looked at."""
    parts = split_thought(str(row["response"]), bool(row.get("begins_in_thought")))
    if row["outcome"] not in CLASSES or not parts.closed or not parts.answer:
        return None
    prompt = None if row.get("prompt") is None else str(row["prompt"])
    found = features(parts.answer, prompt, *by_rules(parts.answer, prompt))
    return Example(found, CLASSES.index(row["outcome"]), writer, weight)  # type: ignore[arg-type]


def judged(of: Sequence[Example], fitted: Fitted) -> tuple[float, float]:
    """Accuracy, and how often withheld or not is right."""
    pairs = [(int(right), e.label) for right, e in zip(fitted.classes(of), of, strict=True)]
    withheld = [(right < len(WITHHELD)) == (wanted < len(WITHHELD)) for right, wanted in pairs]
    return sum(right == wanted for right, wanted in pairs) / len(of), sum(withheld) / len(of)


def main() -> None:
    """Learn and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strength", type=float, default=1.0, help="of the examples against the penalty (default %(default)s)")
    parser.add_argument("--folds", action="store_true", help="first leave out one writer after the other")
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    data = examples()
    print(f"{len(data)} responses: {dict(Counter(CLASSES[e.label] for e in data))}", flush=True)
    for writer in sorted({e.writer for e in data}) if args.folds else ():
        others, own = [e for e in data if e.writer != writer], [e for e in data if e.writer == writer]
        accuracy, withheld = judged(own, fit(others, len(CLASSES), args.strength))
        print(f"without {writer:10} ({len(own)} responses): accuracy {accuracy:.3f}, withheld or not {withheld:.3f}", flush=True)
    fitted = fit(data, len(CLASSES), args.strength)
    print(f"{args.out}: {fitted.save(args.out)} features, {args.out.stat().st_size / 1e6:.1f} MB")
    accuracy, withheld = judged(data, fitted)
    print(f"on what it learned from: accuracy {accuracy:.3f}, withheld or not {withheld:.3f}")


if __name__ == "__main__":
    main()
