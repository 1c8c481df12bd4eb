"""Arguments and options of commands that are not settings: files, folders, a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from abliterate.config.setting import Panel

OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the results.", show_default=False, rich_help_panel=Panel.MAIN)]
NewFolder = Annotated[
    Path, typer.Option("--out", help="Folder for the output. It must not exist yet.", show_default=False, rich_help_panel=Panel.MAIN)
]
OutFile = Annotated[
    Path, typer.Option("--out", help="File for the activations (.safetensors).", show_default=False, rich_help_panel=Panel.MAIN)
]
Checkpoint = Annotated[Path, typer.Argument(metavar="DIR", help="The edited checkpoint, or the run's folder.", show_default=False)]
Repository = Annotated[str, typer.Argument(metavar="REPO", help="Hub repository: owner/name.", show_default=False)]
Figures = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write all figures to this file.", show_default=False)]
Scorable = Annotated[
    Path,
    typer.Argument(
        metavar="FILE.jsonl",
        help="One JSON object per line. Read are prompt and response, and if they are there: facts (a list), official (the official line), "
        "begins_in_thought and cut (whether the reply reached its token limit). All other keys are kept.",
        show_default=False,
    ),
]
JUDGED = (
    "Judge stored replies. The command adds to each line: outcome, rule (what decided), thought (the outcome of the thought) and substance "
    "(whether the answer contains one of the facts). Some lines get more: reason (evasive) of a deflected reply, worth of an answer to a "
    "prompt with facts, grade (1 to 5) of a steered one, hedged (true or false) of an answer to a prompt without facts."
)
ScoredFile = Annotated[
    Path | None,
    typer.Option("--out", help="Write the scored lines to this file instead of stdout.", show_default=False, rich_help_panel=Panel.MAIN),
]
Recorded = Annotated[
    Path,
    typer.Argument(metavar="RUN.json", help="The folder, run.json or report.json of a run, an audit or a comparison.", show_default=False),
]
Collected = Annotated[Path, typer.Argument(metavar="FILE", help="An activations file from collect, or a run's folder.", show_default=False)]
DirectionFile = Annotated[
    Path | None,
    typer.Option("--out", help="File for the direction of --estimator.", show_default=False, rich_help_panel=Panel.MAIN),
]
SomeRun = Annotated[Path | None, typer.Argument(metavar="RUN", help="The folder of a run, an audit or a comparison.", show_default=False)]
OtherRuns = Annotated[
    list[Path] | None,
    typer.Option("--compare", metavar="RUN...", help="More runs to show beside RUN, on the page that --out names.", show_default=False),
]
PageFile = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.html", help="File for the page of --compare.", show_default=False, rich_help_panel=Panel.MAIN),
]
