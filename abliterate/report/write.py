"""Write the report of a run folder: report.json, report.html, and the card of the derived checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from abliterate.checkpoint.names import PROOF
from abliterate.checkpoint.records import Proof, WeightsFile
from abliterate.checkpoint.sums import to_hash, write_sums
from abliterate.config import Transcripts
from abliterate.directions.document import DirectionsQuality
from abliterate.files import write_json, write_text
from abliterate.measures.parts.moved import Benchmarks
from abliterate.measures.summary import Judged
from abliterate.report.card import model_card
from abliterate.report.page.render import report_page
from abliterate.report.tree.report import Report
from abliterate.runs.folder import BENCHMARKS, DIRECTIONS, WEIGHTS, RunFolder
from abliterate.terminal.progress import stage


def write_report(
    folder: RunFolder,
    report: Report,
    before: Mapping[str, Judged],
    after: Mapping[str, Judged] | None,
    auc: Mapping[str, Sequence[float]] | None,
    transcripts: Transcripts | None = None,
) -> Report:
    """Write report.json, report.html and the derived checkpoint's card. Returns the report with its cost.

    If the folder holds a comparison of weights, benchmark scores or the quality of the directions, they go into the report.
    ``transcripts``: how much of each reply the page shows; None: as the run's settings say.
    """
    weights, scores, directions = (folder.path / name for name in (WEIGHTS, BENCHMARKS, DIRECTIONS))
    more: dict[str, object] = {"weights": WeightsFile.read(weights).summary} if weights.is_file() else {}
    more |= {"directions": DirectionsQuality.read(directions)} if directions.is_file() else {}
    if scores.is_file():
        left = tuple(name for name in report.not_measured if name != "benchmarks")
        more |= {"benchmarks": Benchmarks.read(scores), "not_measured": left}
    whole = report.model_copy(update={**more, "cost": folder.cost()})
    write_json(whole, folder.path / "report.json")
    shown = transcripts or folder.record().settings.get("transcripts", "excerpt")
    write_text(report_page(whole, before, after, auc, shown), folder.path / "report.html")
    card = folder.path / "checkpoint" / "README.md"
    if card.is_file():
        write_text(model_card(Proof.read(card.parent / PROOF), whole), card)
        with stage("bytes hashed (SHA256SUMS)", to_hash(card.parent)) as advance:
            write_sums(card.parent, advance)
    return whole
