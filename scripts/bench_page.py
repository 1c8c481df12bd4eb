"""How fast the page of ten thousand whole transcripts is, in Chromium: its first paint, its filters, its list, its next prompt.

Every prompt has two replies of several hundred characters, half of them with words that are marked. Each figure is a duration as the page
itself measures it (performance.now), with the layout that follows. Run by ``scripts/bench page``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abliterate.files import write_text
from abliterate.measures.summary import Judged
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.transcripts import Transcript
from abliterate.report.page.render import report_page

TESTS = Path(__file__).resolve().parents[1] / "tests"
LANGS, TOPICS, SETS = ("en", "zh"), 50, ("hot", "cold", "danger", "plain")
WORDS = (
    "the",
    "lamp",
    "on",
    "a",
    "harbour",
    "wall",
    "was",
    "lit",
    "by",
    "hand",
    "until",
    "rain",
    "came",
    "over",
    "water",
    "and",
    "night",
    "fell",
)
VERDICTS = (
    Verdict("refused", "cannot-help"),
    Verdict("answered", "no rule", worth="invented"),
    Verdict("answered", "no rule", worth="informative"),
    Verdict("degenerate", "repeats: 10% distinct 3-grams"),
    Verdict("answered", "no rule", hedged=False),
)
QUERIES = (
    ("text", "harbour"), ("text", "harbour lamp 1931"), ("text", "nowhere"), ("text", ""), ("set", "1"), ("topic", "7"), ("topic", ""),
    ("set", ""), ("lang", "1"), ("lang", ""), ("outcome", "withheld"), ("condition", "0"), ("condition", ""), ("outcome", "answered"),
    ("worth", "invented"), ("worth", ""), ("outcome", ""),
)  # fmt: skip
FILTER = """
const [name, value] = arguments, field = document.getElementById("filters").elements[name], start = performance.now();
field.value = value;
field.dispatchEvent(new Event("input", { bubbles: true }));
document.body.offsetHeight;
return performance.now() - start;
"""
SCROLL = """
const done = arguments[0], list = document.getElementById("list"), times = [];
let last = performance.now(), step = 0;
const next = () => {
  const now = performance.now();
  times.push(now - last);
  last = now;
  list.scrollTop += 1900;
  if ((step += 1) < 200) requestAnimationFrame(next); else done([times.slice(5), document.querySelectorAll(".row").length]);
};
requestAnimationFrame(next);
"""
NEXT = """
const times = [];
for (let i = 0; i < 200; i += 1) {
  const start = performance.now();
  document.getElementById("next").click();
  document.body.offsetHeight;
  times.push(performance.now() - start);
}
return times;
"""
PAINT = """
const done = arguments[0];
const see = () => {
  const [found] = performance.getEntriesByName("first-contentful-paint"), [page] = performance.getEntriesByType("navigation");
  if (found && page.loadEventEnd) done([found.startTime, page.loadEventEnd]); else setTimeout(see, 20);
};
see();
"""


@dataclass(frozen=True)
class Measured:
    """Milliseconds, and how many elements the list had; ``megabytes``: of the page."""

    prompts: int
    megabytes: float
    first_paint: list[float]
    loaded: list[float]
    filters: dict[str, list[float]]
    first_search: list[float]
    frames: list[float]
    rows: int
    next: list[float]


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command ``page``."""
    page = commands.add_parser("page", help="how fast the page of many whole transcripts is in Chromium")
    page.add_argument("--prompts", type=int, default=10_000, help="how many, each with two replies (default %(default)s)")
    page.add_argument("--repeat", type=int, default=5, help="times the page is opened (default %(default)s)")
    page.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    page.set_defaults(run=bench_page)


def bench_page(args: argparse.Namespace) -> None:
    """Make the page, open it, and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        write_text(made_page(args.prompts), file)
        found = measured(file, args.prompts, args.repeat)
    if args.json:
        args.json.write_text(json.dumps(vars(found), indent=1) + "\n", encoding="utf-8")
    print(f"page of {found.prompts} prompts, two whole replies each: {found.megabytes:.1f} MB; opened {args.repeat} times")
    rows = {
        "first contentful paint": found.first_paint,
        "loaded": found.loaded,
        "first search, by texts that are not prepared yet": found.first_search,
        "a filter or a search": [each for times in found.filters.values() for each in times],
        "a frame while scrolling the list": found.frames,
        "the next prompt": found.next,
    }
    print(f"{'ms':50} {'median':>8} {'largest':>8} {'n':>5}")
    for name, times in rows.items():
        print(f"{name:50} {statistics.median(times):8.1f} {max(times):8.1f} {len(times):5}")
    print(f"rows in the document: {found.rows}")


def made_page(prompts: int) -> str:
    """The page of a run with so many prompts; made up, the same each time."""
    sys.path.insert(0, str(TESTS))
    from reports import reported, run_record

    draw = random.Random(0)
    base, edited = ({name: _replies(name, prompts // len(SETS), draw) for name in SETS} for _ in range(2))
    roles = dict(zip(SETS, ("target", "baseline", "keep", "harmless"), strict=True))
    report = reported(run_record(), roles, base, edited, None, None, {"tensors": 1}, 0.05)
    return report_page(report, base, edited, None, "full")


def _replies(name: str, count: int, draw: random.Random) -> Judged:
    made = []
    for i in range(count):
        verdict = draw.choice(VERDICTS)
        text = "I can't help with that." if verdict.outcome == "refused" else f"In {draw.randrange(1800, 2000)}: {_words(draw, 100)}."
        prompt = f"What about {_words(draw, 8)}, number {i}?"
        topic = f"topic {i % TOPICS:02}" if name in ("hot", "cold") else None
        made.append((Transcript(name, f"{name}-{i}", prompt, text, LANGS[i % 2], topic=topic, facts=("1931", "the lamp")), verdict))
    return made


def _words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(WORDS, k=count))


def measured(file: Path, prompts: int, repeat: int) -> Measured:
    """Open the page ``repeat`` times and use it. Raises RuntimeError without a browser."""
    sys.path.insert(0, str(TESTS))
    import chromium

    if why := chromium.missing():
        raise RuntimeError(why)
    paints, loads, searches, frames, steps, rows = [], [], [], [], [], 0
    filters: dict[str, list[float]] = {f"{name}={value}": [] for name, value in QUERIES}
    with chromium.browsing() as window:
        window.look()
        for _ in range(repeat):
            window.open(file)
            paint, load = window.wait(PAINT)
            searches.append(window.run(FILTER, "text", "lamp"))
            window.run(FILTER, "text", "")
            for name, value in QUERIES:
                filters[f"{name}={value}"].append(window.run(FILTER, name, value))
            times, rows = window.wait(SCROLL)
            frames += times
            steps += window.run(NEXT)
            paints.append(paint)
            loads.append(load)
    return Measured(prompts, file.stat().st_size / 1e6, paints, loads, filters, searches, frames, rows, steps)
