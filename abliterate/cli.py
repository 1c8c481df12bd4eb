"""Parse, validate, call. torch and transformers are imported inside the commands, so that --help is quick."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from abliterate import __version__
from abliterate.config import (
    AuditConfig,
    ChatConfig,
    CollectConfig,
    CompareConfig,
    DirectionsConfig,
    EditCommandConfig,
    JudgeConfig,
    ModelConfig,
    PlanConfig,
    PushConfig,
    ReportConfig,
    ReproduceConfig,
    RunConfig,
    VerifyConfig,
)
from abliterate.errors import CheckError, InputError
from abliterate.harmless import echo
from abliterate.options import command, spread
from abliterate.place import check_new, check_place
from abliterate.streams import write_json

app = typer.Typer(
    name="abliterate",
    help="Find, measure and remove a chosen kind of refusal in an open-weight language model (directional ablation).",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
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
INTERRUPTED = 130
_SEVERAL = ("--target", "--baseline", "--keep", "--prompts", "--lm-eval", "--compare", "--estimators")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _run(config: RunConfig, out: Path) -> None:
    check_place(out)
    with _loading():
        from abliterate.pipeline import run
        from abliterate.report.terminal import show

    _by_the_first(config, lambda: show(run(config, out), out))


def _audit(config: AuditConfig, out: Path) -> None:
    check_place(out)
    with _loading():
        from abliterate.commands import audit
        from abliterate.report.terminal import show

    _by_the_first(config, lambda: show(audit(config, out), out))


def _compare(config: CompareConfig, out: Path) -> None:
    check_place(out)
    with _loading():
        from abliterate.comparison import compare, side
        from abliterate.report.terminal import show

    def act() -> None:
        show(compare(config, out), out)

    if config.weights_only:
        act()
    else:
        _by_the_first(side(config, "base"), act)


def _collect(config: CollectConfig, out: Path) -> None:
    check_new(out)
    with _loading():
        from abliterate.commands import collect

    _by_the_first(config, lambda: echo(collect(config, out)))


def _directions(config: DirectionsConfig, given: Path, out: Path | None) -> None:
    with _loading():
        from abliterate.commands import directions
        from abliterate.report.directions import show_directions

    show_directions(directions(config, given, out), out)


def _by_the_first(config: ModelConfig, act: Callable[[], None]) -> None:
    """Under torchrun the first process acts, and the others compute what it asks them for."""
    from abliterate.model.launch import own_rank
    from abliterate.model.ranks import dismiss
    from abliterate.model.session import serve_models

    if own_rank():
        serve_models(config)
        return
    act()
    dismiss()


def _edit(config: EditCommandConfig, out: Path) -> None:
    with _loading():
        from abliterate.commands import edit

    echo(edit(config, out))


def _verify(config: VerifyConfig, checkpoint: Path) -> None:
    with _loading():
        from abliterate.commands import verify

    echo(verify(config, checkpoint))


def _push(config: PushConfig, checkpoint: Path, repo: str) -> None:
    with _loading():
        from abliterate.publishing.push import push

    echo(push(config, checkpoint, repo))


def _plan(config: PlanConfig, figures: Path | None) -> None:
    with _loading():
        from abliterate.commands import plan

    echo("\n".join(plan(config, figures)))


command(
    app,
    "run",
    RunConfig,
    _run,
    "The whole pipeline: find the direction, edit, test, report. The same command again resumes.",
    out=OutFolder,
)
command(app, "audit", AuditConfig, _audit, "Ask one model and report what it withholds; nothing is edited.", out=OutFolder)
command(
    app,
    "compare",
    CompareConfig,
    _compare,
    "Ask two models the same, before and after, and say what differs between their weights.",
    out=OutFolder,
)
command(app, "collect", CollectConfig, _collect, "Activation statistics alone.", out=OutFile)
command(
    app,
    "directions",
    DirectionsConfig,
    _directions,
    "How well each estimator's directions separate the sets; one of them as a file for edit.",
    given=Collected,
    out=DirectionFile,
)
command(app, "edit", EditCommandConfig, _edit, "Edit a checkpoint with a direction or plan from anywhere.", out=NewFolder)
command(
    app,
    "verify",
    VerifyConfig,
    _verify,
    "Derive the proof of an edited checkpoint again, from its bytes and, with --base, its base's.",
    checkpoint=Checkpoint,
)
command(
    app,
    "push",
    PushConfig,
    _push,
    "Publish an edited checkpoint to the Hub, private unless --public; what is checked first must hold.",
    checkpoint=Checkpoint,
    repo=Repository,
)
command(
    app,
    "plan",
    PlanConfig,
    _plan,
    "What a run with these flags would read, write, edit, hold in memory, compute and take; reads headers only.",
    figures=Figures,
)


def _reproduce(config: ReproduceConfig, run: Path, out: Path) -> None:
    with _loading():
        from abliterate.reproducing.again import FILE, first_model, reproduce
        from abliterate.reproducing.shown import show

    def act() -> None:
        document = reproduce(config, run, out)
        show(document)
        if count := document["totals"]["different"]:
            raise CheckError(f"{run}: not reproduced, {count} figures are different; all of them are in {out / FILE}")

    first = first_model(config, run)
    if first is None:
        act()
    else:
        _by_the_first(first, act)


command(
    app,
    "reproduce",
    ReproduceConfig,
    _reproduce,
    "Run again what a run's record says, and compare: which figures are identical, within their intervals, or different.",
    run=Recorded,
    out=OutFolder,
)


def _chat(config: ChatConfig) -> None:
    with _loading():
        from abliterate.chat.conversation import chat

    chat(config)


command(
    app,
    "chat",
    ChatConfig,
    _chat,
    "Talk with a model, and beside it with its edit: the same words to both, their replies side by side.",
)


def _report(config: ReportConfig, folder: Path | None, compare: list[Path] | None, out: Path | None) -> None:
    if compare:
        if out is None:
            raise InputError("--compare writes one page: give --out FILE.html")
        from abliterate.report.compare_runs import compare_runs

        echo(compare_runs([*([folder] if folder else []), *compare], out))
        return
    if folder is None or out is not None:
        raise InputError("give the folder of a run" if folder is None else "--out goes with --compare; a run's report lies in its folder")
    with _loading():
        from abliterate.report.terminal import show
        from abliterate.rescoring import render_again

    show(render_again(config, folder), folder)


def _score(config: JudgeConfig, file: Path, out: Path | None) -> None:
    if out is not None and file.exists() and out.exists() and out.samefile(file):
        raise InputError(f"{out}: is the input itself; give another --out")
    if out is not None:
        check_new(out)
    with _loading():
        from abliterate.commands import score as scored

    lines = scored(file, config)
    if out is None:
        write_json(lines)
    else:
        from abliterate.report.document import write_text

        out.parent.mkdir(parents=True, exist_ok=True)
        write_text("".join(line + "\n" for line in lines), out)


command(
    app,
    "score",
    JudgeConfig,
    _score,
    "Outcomes for stored transcripts: the same lines plus outcome, thought, substance, rule.",
    file=Scorable,
    out=ScoredFile,
)
command(
    app,
    "report",
    ReportConfig,
    _report,
    "Render a run's report again from its stored transcripts, under another judge if one is named; needs no model. "
    "With --compare: several runs side by side in one page.",
    folder=SomeRun,
    compare=OtherRuns,
    out=PageFile,
)


@contextmanager
def _loading() -> Iterator[None]:
    """Around the imports of torch and transformers: collecting garbage among their half a million objects, which all stay, takes as long
    as a third of the imports, and again at the end of the process; so these objects are left out of it."""
    first = "torch" not in sys.modules
    if first:
        gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
            gc.enable()
            atexit.register(gc.freeze)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 a check did not hold, 2 bad input, 130 interrupted."""
    try:
        given = spread(sys.argv[1:] if arguments is None else arguments, _SEVERAL)
        if app(given or ["--help"], standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
        return 0
    except TyperException as error:
        return _fail(error.format_message().replace("\n", " "), 2)
    except (InputError, CheckError) as error:
        return _fail(str(error), 2 if isinstance(error, InputError) else 1)
    except (KeyboardInterrupt, Abort):
        return _fail("interrupted; the same command goes on where it stopped", INTERRUPTED)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(
                f"no space left on the disk ({error.filename or 'while writing'}); make room, the same command goes on",
                2,
            )
        if error.errno in (
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EEXIST,
            errno.ENAMETOOLONG,
            errno.EIO,
        ):
            return _fail(f"{error.filename}: {os.strerror(error.errno)}", 2)
        raise


def _fail(line: str, code: int) -> int:
    echo(f"abliterate: {' '.join(line.split())}", err=True)
    return code
