"""The commands of the command line. Each loads what it needs, calls its function and shows the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from abliterate.cli.arguments import (
    JUDGED,
    Checkpoint,
    Collected,
    DirectionFile,
    Figures,
    NewFolder,
    OtherRuns,
    OutFile,
    OutFolder,
    PageFile,
    Recorded,
    Repository,
    Scorable,
    ScoredFile,
    SomeRun,
)
from abliterate.cli.loading import loading
from abliterate.cli.options import command
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
from abliterate.files import check_new, check_place
from abliterate.terminal.harmless import echo
from abliterate.terminal.streams import write_json


def register(app: typer.Typer) -> None:
    """Add the commands to the app, in the order of --help."""
    command(
        app,
        "run",
        RunConfig,
        _run,
        "The whole pipeline: find the direction, edit, test, report. Run the same command again to resume.",
        out=OutFolder,
    )
    command(app, "audit", AuditConfig, _audit, "Ask one model and report what it withholds. Nothing is edited.", out=OutFolder)
    command(
        app,
        "compare",
        CompareConfig,
        _compare,
        "Compare the replies and the weights of two models. One is the model before a change, the other the model after it.",
        out=OutFolder,
    )
    command(
        app,
        "collect",
        CollectConfig,
        _collect,
        "Collect activation statistics into a file. The command directions estimates directions from it.",
        out=OutFile,
    )
    command(
        app,
        "directions",
        DirectionsConfig,
        _directions,
        "Show how well directions separate the prompt sets. With --out, write one of them to a file for the command edit.",
        given=Collected,
        out=DirectionFile,
    )
    command(
        app,
        "edit",
        EditCommandConfig,
        _edit,
        "Edit a checkpoint. The command removes a direction, or applies the edit that a run chose (--plan).",
        out=NewFolder,
    )
    command(
        app,
        "verify",
        VerifyConfig,
        _verify,
        "Check an edited checkpoint against its abliteration.json. The command measures again what is left of the direction in the edited "
        "tensors. With --base, it also compares all other bytes with those of the base.",
        checkpoint=Checkpoint,
    )
    command(
        app,
        "push",
        PushConfig,
        _push,
        "Publish an edited checkpoint to the Hub. The repository is private unless you give --public. First, the command checks the proof, "
        "the tests of the keep sets and the licence.",
        checkpoint=Checkpoint,
        repo=Repository,
    )
    command(
        app,
        "plan",
        PlanConfig,
        _plan,
        "Forecast what a run would need. The command shows what a run with the same flags would read, write, edit, hold in memory and "
        "compute, and how long it would take. It reads only the headers of the model's files.",
        figures=Figures,
    )
    command(
        app,
        "reproduce",
        ReproduceConfig,
        _reproduce,
        "Repeat a recorded run and compare its figures. The command calls each figure identical, within its interval, or different.",
        run=Recorded,
        out=OutFolder,
    )
    command(
        app,
        "chat",
        ChatConfig,
        _chat,
        "Chat with one model, or with two side by side. Two models, such as a model and its edit, get the same messages.",
    )
    command(
        app,
        "score",
        JudgeConfig,
        _score,
        JUDGED,
        file=Scorable,
        out=ScoredFile,
    )
    command(
        app,
        "report",
        ReportConfig,
        _report,
        "Render a run's report again. The command uses the stored transcripts, and another judge if you name one; it needs no model. "
        "With --compare, it shows several runs side by side on one page.",
        folder=SomeRun,
        compare=OtherRuns,
        out=PageFile,
    )


def _run(config: RunConfig, out: Path) -> None:
    check_place(out)
    with loading():
        from abliterate.commands.run import run
        from abliterate.report.terminal import show

    _by_the_first(config, lambda: show(run(config, out), out))


def _audit(config: AuditConfig, out: Path) -> None:
    check_place(out)
    with loading():
        from abliterate.commands.audit import audit
        from abliterate.report.terminal import show

    _by_the_first(config, lambda: show(audit(config, out), out))


def _compare(config: CompareConfig, out: Path) -> None:
    check_place(out)
    with loading():
        from abliterate.commands.compare import compare
        from abliterate.report.terminal import show

    def act() -> None:
        show(compare(config, out), out)

    if config.weights_only:
        act()
    else:
        _by_the_first(config.side("base"), act)


def _collect(config: CollectConfig, out: Path) -> None:
    check_new(out)
    with loading():
        from abliterate.commands.collect import collect

    _by_the_first(config, lambda: echo(collect(config, out)))


def _directions(config: DirectionsConfig, given: Path, out: Path | None) -> None:
    with loading():
        from abliterate.commands.directions import directions
        from abliterate.report.directions import show_directions

    show_directions(directions(config, given, out), out)


def _by_the_first(config: ModelConfig, act: Callable[[], None]) -> None:
    """Under torchrun the first process runs ``act``; the other processes compute for it until it dismisses them."""
    from abliterate.compute.distributed import dismiss
    from abliterate.compute.launch import own_rank
    from abliterate.compute.session import serve_models

    if own_rank():
        serve_models(config)
        return
    act()
    dismiss()


def _edit(config: EditCommandConfig, out: Path) -> None:
    with loading():
        from abliterate.commands.edit import edit

    echo(edit(config, out))


def _verify(config: VerifyConfig, checkpoint: Path) -> None:
    with loading():
        from abliterate.commands.verify import verify

    echo(verify(config, checkpoint))


def _push(config: PushConfig, checkpoint: Path, repo: str) -> None:
    with loading():
        from abliterate.commands.push import push

    echo(push(config, checkpoint, repo))


def _plan(config: PlanConfig, figures: Path | None) -> None:
    with loading():
        from abliterate.commands.plan import plan

    echo("\n".join(plan(config, figures)))


def _reproduce(config: ReproduceConfig, run: Path, out: Path) -> None:
    with loading():
        from abliterate.commands.reproduce import FILE, first_model, reproduce
        from abliterate.report.reproduction import show

    def act() -> None:
        document = reproduce(config, run, out)
        show(document)
        if count := document.totals.different:
            raise CheckError(f"{run}: not reproduced, {count} figures are different; {out / FILE} lists all figures")

    first = first_model(config, run)
    if first is None:
        act()
    else:
        _by_the_first(first, act)


def _chat(config: ChatConfig) -> None:
    with loading():
        from abliterate.commands.chat.conversation import chat

    chat(config)


def _report(config: ReportConfig, folder: Path | None, compare: list[Path] | None, out: Path | None) -> None:
    if compare:
        if out is None:
            raise InputError("--compare writes one page: give --out FILE.html")
        from abliterate.report.compare_runs import compare_runs

        echo(compare_runs([*([folder] if folder else []), *compare], out))
        return
    if folder is None or out is not None:
        raise InputError(
            "give the folder of a run" if folder is None else "--out goes with --compare; a single report is written into the run's folder"
        )
    with loading():
        from abliterate.commands.report import render_again
        from abliterate.report.terminal import show

    show(render_again(config, folder), folder)


def _score(config: JudgeConfig, file: Path, out: Path | None) -> None:
    if out is not None and file.exists() and out.exists() and out.samefile(file):
        raise InputError(f"{out}: is the input itself; give another --out")
    if out is not None:
        check_new(out)
    with loading():
        from abliterate.commands.score import score as scored

    lines = scored(file, config)
    if out is None:
        write_json(lines)
    else:
        from abliterate.files import write_text

        out.parent.mkdir(parents=True, exist_ok=True)
        write_text("".join(line + "\n" for line in lines), out)
