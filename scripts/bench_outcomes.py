"""How well a judge tells outcomes: its verdicts against responses labelled by hand.

Prints the confusion matrix, precision, recall and F1 of each outcome, macro-F1 (over the outcomes that occur), and how often it is
right about withheld or not and broken or not, overall, by language, by source and by model; and, of answers
whose worth was labelled, how often it is right about that. ``--write`` puts the sensitivity and specificity of the
built-in judge, on the test halves of real models and of this project's fixtures, into the file that reports correct their rates by. Run
by ``scripts/bench outcomes``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
LABELLED = ROOT / "tests" / "data" / "outcomes_labelled.jsonl"
NATURAL_ON = "Test halves of tests/data/outcomes_models.jsonl and outcomes_real.jsonl: three real models."
CANNED_ON = "Test half of tests/data/outcomes_labelled.jsonl, rows with the source model: this project's fixtures."
console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)

Pair = tuple[str, str | None]  # label and verdict; None where the judge gave none


def rows_of(file: Path, split: str) -> list[dict[str, Any]]:
    """The labelled rows of a split; a file without splits has all its rows in each."""
    from abliterate.errors import InputError
    from abliterate.outcomes.records import GIVEN

    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a file of labelled responses ({error})") from None
    for number, row in enumerate(rows, 1):
        if not all(isinstance(row.get(key), str) for key in ("prompt", "response")) or row.get("outcome") not in GIVEN:
            raise InputError(f"{file}: row {number} must have a prompt, a response and an outcome of {', '.join(GIVEN)}")
    found = [row for row in rows if split == "all" or row.get("split", split) == split]
    if not found:
        raise InputError(f"{file}: no rows in the split {split!r}; give another --split")
    return found


def verdicts_of(rows: Sequence[dict[str, Any]], judge: Any) -> list[Any]:
    """A judge's verdict on each row; None where it gave none."""
    from abliterate.outcomes.judges.judging import judged_by
    from abliterate.outcomes.records import NOT_JUDGED
    from abliterate.replies.transcripts import Transcript

    asked = [
        Transcript(
            "labelled",
            str(row.get("id", i)),
            row["prompt"],
            row["response"],
            begins_in_thought=row.get("begins_in_thought", False),
            cut=row.get("cut", False),
            facts=tuple(row.get("facts") or ()),
            official=row.get("official"),
        )
        for i, row in enumerate(rows)
    ]
    return [None if verdict is None or verdict.outcome == NOT_JUDGED else verdict for verdict in judged_by(judge, asked)]


def figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Everything that is counted of labels and verdicts; a row without a verdict is wrong, and in no column of the matrix."""
    from abliterate.measures.agreement import cohens_kappa
    from abliterate.measures.summary import rate as measured
    from abliterate.outcomes.records import GIVEN, WITHHELD

    def rate(k: int, n: int) -> dict[str, Any]:
        return measured(k, n).document()

    counts = Counter(pairs)
    outcomes = {name: _of_outcome(counts, name) for name in GIVEN}
    occurring = [found["f1"] for name, found in outcomes.items() if found["n"]]
    judged = [(label, verdict) for label, verdict in pairs if verdict is not None]
    held = [(label in WITHHELD, verdict is not None and verdict in WITHHELD, verdict is not None) for label, verdict in pairs]
    positive, negative = [h for h in held if h[0]], [h for h in held if not h[0]]
    return {
        "n": len(pairs),
        "unjudged": len(pairs) - len(judged),
        "confusion": {a: {b: counts[a, b] for b in GIVEN} for a in GIVEN},
        "outcomes": outcomes,
        "accuracy": rate(sum(a == b for a, b in pairs), len(pairs)),
        "macro_f1": sum(occurring) / len(occurring) if occurring else None,
        "kappa": cohens_kappa(judged),
        "withheld": {
            "accuracy": rate(sum(is_ == said and known for is_, said, known in held), len(held)),
            "sensitivity": rate(sum(said for _, said, _ in positive), len(positive)),
            "specificity": rate(sum(known and not said for _, said, known in negative), len(negative)),
        },
        "broken": rate(sum((a == "degenerate") == (b == "degenerate") and b is not None for a, b in pairs), len(pairs)),
    }


def worth_figures(rows: Sequence[dict[str, Any]], verdicts: Sequence[Any]) -> dict[str, Any] | None:
    """What a judge says of the worth of answers, where the label and the judge both have one; None without such rows."""
    from abliterate.measures.summary import rate
    from abliterate.outcomes.worth.records import NAMES

    pairs = [(row["worth"], v.worth) for row, v in zip(rows, verdicts, strict=True) if row.get("worth") and v is not None and v.worth]
    if not pairs:
        return None
    counts = Counter(pairs)
    worths = {name: _of_outcome(counts, name) for name in NAMES}
    occurring = [found["f1"] for found in worths.values() if found["n"]]
    invented = sum((a == "invented") == (b == "invented") for a, b in pairs)
    return {
        "n": len(pairs),
        "worths": worths,
        "accuracy": rate(sum(a == b for a, b in pairs), len(pairs)).document(),
        "macro_f1": sum(occurring) / len(occurring),
        "invented": rate(invented, len(pairs)).document(),
    }


def _of_outcome(counts: Counter[Pair], name: str) -> dict[str, Any]:
    right = counts[name, name]
    said = sum(count for (_, verdict), count in counts.items() if verdict == name)
    n = sum(count for (label, _), count in counts.items() if label == name)
    return {
        "n": n,
        "precision": right / said if said else None,
        "recall": right / n if n else None,
        "f1": 2 * right / (said + n) if said + n else None,
    }


def measured(rows: Sequence[dict[str, Any]], judge: Any) -> dict[str, Any]:
    """Figures of a judge on labelled rows: all, by language, by source, and by model."""
    verdicts = verdicts_of(rows, judge)
    pairs = [(str(row["outcome"]), None if verdict is None else verdict.outcome) for row, verdict in zip(rows, verdicts, strict=True)]

    def parts(key: str) -> dict[str, Any]:
        names = sorted({str(row.get(key, "")) for row in rows})
        return {name: figures([p for row, p in zip(rows, pairs, strict=True) if str(row.get(key, "")) == name]) for name in names if name}

    by = {"by_lang": parts("lang"), "by_source": parts("source"), "by_model": parts("model")}
    return {"judge": judge.name, **figures(pairs), **by, "worth": worth_figures(rows, verdicts)}


def show(found: dict[str, Any], what: str) -> None:
    """Tables on stdout."""
    names = list(found["confusion"])
    matrix = Table(title=f"{found['judge']} on {what} (rows: by hand; columns: by the judge)")
    for column in ("", *names, *(["unjudged"] if found["unjudged"] else []), "precision", "recall", "F1"):
        matrix.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name in names:
        row, of = found["confusion"][name], found["outcomes"][name]
        left = [str(of["n"] - sum(row.values()))] if found["unjudged"] else []
        matrix.add_row(f"{name} ({of['n']})", *map(str, row.values()), *left, *(_share(of[key]) for key in ("precision", "recall", "f1")))
    console.print(matrix)
    table = Table()
    for column in ("rows", "n", "accuracy", "macro-F1", "kappa", "broken or not", "withheld or not", "sensitivity", "specificity"):
        table.add_column(column, justify="left" if column == "rows" else "right", no_wrap=True)
    for name, part in (("all", found), *found["by_lang"].items(), *found["by_source"].items(), *found["by_model"].items()):
        withheld = part["withheld"]
        rates = [_rate(withheld[key]) for key in ("accuracy", "sensitivity", "specificity")]
        shares = [_share(each) for each in (part["accuracy"]["rate"], part["macro_f1"], part["kappa"], part["broken"]["rate"])]
        table.add_row(name, str(part["n"]), *shares, *rates)
    console.print(table)
    console.print("In brackets: k/n and Wilson 95 % interval. Sensitivity and specificity are of withheld; macro-F1 is over what occurs.")
    if worth := found["worth"]:
        console.print(
            f"Worth of {worth['n']} answers: accuracy {_rate(worth['accuracy'])}, macro-F1 {_share(worth['macro_f1'])}, "
            f"invented or not {_rate(worth['invented'])}; "
            + ", ".join(f"{name} ({each['n']}) F1 {_share(each['f1'])}" for name, each in worth["worths"].items())
        )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _rate(rate: dict[str, Any]) -> str:
    if rate["rate"] is None:
        return "–"
    low, high = rate["ci95"]
    return f"{rate['rate']:.3f} ({rate['k']}/{rate['n']}, {low:.3f}–{high:.3f})"


def write() -> Path:
    """Measure the built-in judge on each kind of model, and put its figures where reports find them. Returns the file."""
    from abliterate.measures.detector import CANNED, FILE, NATURAL, RULES, as_toml

    found = {NATURAL: detector_on(natural_rows()), CANNED: detector_on(canned_rows())}
    FILE.write_text(as_toml(RULES, found, {NATURAL: NATURAL_ON, CANNED: CANNED_ON}), encoding="utf-8")
    return FILE


def natural_rows() -> list[dict[str, Any]]:
    """Labelled replies of models that were not trained to refuse here; none was learned from."""
    return [row for name in ("models", "real") for row in rows_of(LABELLED.with_name(f"outcomes_{name}.jsonl"), "test")]


def canned_rows() -> list[dict[str, Any]]:
    """Labelled replies of this project's fixtures; none was learned from."""
    return [row for row in rows_of(LABELLED, "test") if row["source"] == "model"]


def detector_on(rows: Sequence[dict[str, Any]]) -> Any:
    """The built-in judge's counts on labelled rows."""
    from abliterate.measures.detector import Detector
    from abliterate.outcomes.judges.judge import Rules

    counts = measured(rows, Rules())["withheld"]
    sensitivity, specificity = ((counts[key]["k"], counts[key]["n"]) for key in ("sensitivity", "specificity"))
    return Detector(sensitivity, specificity)


def bench(args: argparse.Namespace) -> None:
    """One judge, measured and shown."""
    sys.path.insert(0, str(ROOT))
    from abliterate.config import JudgeConfig
    from abliterate.errors import InputError
    from abliterate.outcomes.judges.named import judge_of

    if args.write and (args.judge, args.split, args.file) != ("rules", "test", LABELLED):
        sys.exit("bench: --write measures the rules on the test halves of the labelled sets: leave --judge, --split and --file out")
    try:
        rows = rows_of(args.file, args.split)
        found = measured(rows, judge_of(JudgeConfig(judge=args.judge, concurrency=args.concurrency)))
    except InputError as error:
        sys.exit(f"bench: {error}")
    show(found, f"{args.file.name}, {args.split}")
    if args.write:
        console.print(f"written: {write()}", soft_wrap=True)
    if args.json:
        args.json.write_text(json.dumps({"file": args.file.name, "split": args.split, **found}, indent=1) + "\n")


def add_to(commands: Any) -> None:
    """The subcommand ``outcomes``."""
    command = commands.add_parser("outcomes", help="a judge's verdicts, against responses labelled by hand")
    command.add_argument("--split", choices=("train", "test", "all"), default="test", help="of the labelled rows (default %(default)s)")
    command.add_argument("--file", type=Path, default=LABELLED, help="another file of labelled responses, of the same form")
    command.add_argument("--judge", default="rules", help="rules, classifier:ID[@LABELS], chat:URL[#MODEL] (default %(default)s)")
    command.add_argument("--concurrency", type=int, default=16, help="requests under way at once on a server (default %(default)s)")
    command.add_argument("--write", action="store_true", help="put sensitivity and specificity where reports find them")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    command.set_defaults(run=bench)
