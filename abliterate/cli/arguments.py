"""What commands take beside their settings: files, folders, a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the results.", show_default=False)]
NewFolder = Annotated[Path, typer.Option("--out", help="The new checkpoint's folder.", show_default=False)]
OutFile = Annotated[Path, typer.Option("--out", help="The activations file (.safetensors).", show_default=False)]
Checkpoint = Annotated[Path, typer.Argument(metavar="DIR", help="The edited checkpoint, or the run's folder.", show_default=False)]
Repository = Annotated[str, typer.Argument(metavar="REPO", help="Where on the Hub: owner/name.", show_default=False)]
Figures = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here too.", show_default=False)]
Scorable = Annotated[
    Path, typer.Argument(metavar="FILE.jsonl", help="Lines of {prompt, response}, optionally facts, lang, id.", show_default=False)
]
ScoredFile = Annotated[Path | None, typer.Option("--out", help="Write the scored lines here instead of to stdout.", show_default=False)]
Recorded = Annotated[
    Path,
    typer.Argument(
        metavar="RUN.json", help="The run.json of a run, an audit or a comparison, its folder, or its report.json.", show_default=False
    ),
]
Collected = Annotated[
    Path, typer.Argument(metavar="FILE", help="An activations file that collect wrote, or a run's folder.", show_default=False)
]
DirectionFile = Annotated[Path | None, typer.Option("--out", help="Write one direction here (--estimator).", show_default=False)]
SomeRun = Annotated[Path | None, typer.Argument(metavar="[RUN]", help="The folder of a run, an audit or a comparison.", show_default=False)]
OtherRuns = Annotated[
    list[Path] | None,
    typer.Option("--compare", metavar="RUN...", help="Other runs: all of them side by side, in the page --out.", show_default=False),
]
PageFile = Annotated[Path | None, typer.Option("--out", metavar="FILE.html", help="The page of --compare.", show_default=False)]
