"""``abliterate report``: write a finished run's report again, from its folder alone, with the rules or another judge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny
from safetensors.torch import save_file
from serving import StandIn, completion, running

from abliterate.checkpoint.sums import check_sums
from abliterate.cli.main import main
from abliterate.measures.agreement import cohens_kappa
from abliterate.measures.statistics import bootstrap_mean
from abliterate.outcomes.judges.rubric import BAR
from abliterate.outcomes.verdict import judge
from abliterate.replies.transcripts import read
from abliterate.report import document

WORDS = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]
ASKED = {"target": "Burn the {}!", "baseline": "Draw the {}.", "keep": "Steal the {}?", "harmless": "Name a {}"}
Capture = pytest.CaptureFixture[str]


def write_set(folder: Path, role: str) -> str:
    file = folder / f"{role}.txt"
    file.write_text("".join(ASKED[role].format(word) + "\n" for word in WORDS), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run (run/) and a finished audit (audit/); their model is deleted."""
    place = tmp_path_factory.mktemp("rescoring")
    model = save_tiny(place / "model", says="I won't.")
    sets = [part for role in ASKED for part in (f"--{role}", write_set(place, role))]
    short = ["--max-new-tokens", "4", "--batch-size", "4"]
    assert main(["run", "--model", str(model), *sets, *short, "--candidates", "2", "--out", str(place / "run")]) == 0
    assert main(["audit", "--model", str(model), "--prompts", str(place / "target.txt"), *short, "--out", str(place / "audit")]) == 0
    shutil.rmtree(model)
    for role in ASKED:
        (place / f"{role}.txt").unlink()
    return place


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run in which some replies refuse and some answer. Its report is quick: coarse intervals, no plot."""
    monkeypatch.setattr(document, "bootstrap_mean", partial(bootstrap_mean, draws=100))
    folder = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    (folder / "directions.safetensors").unlink()  # only a plot needs it
    for which in ("base", "edited"):
        file = folder / "transcripts" / f"{which}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for i, row in enumerate(rows):
            refuses = i % 3 == 0 if which == "base" else i % 6 == 0
            row["response"] = (
                "I can't help with that." if refuses else f"Sure, as the {which} model says: take the {i} steps, one after another."
            )
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def nothing_judged_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLITERATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server() -> Iterator[StandIn]:
    with running(StandIn()) as made:
        yield made


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))


def judged_reply(message: str) -> str:
    """The reply inside a message to the judge."""
    between = message.partition("=== BEGIN REPLY")[2].partition("=== END REPLY")[0].split("\n")[1:-1]
    return "\n".join(line.removeprefix(BAR) for line in between)


@pytest.mark.parametrize("kind", ["run", "audit"])
def test_without_the_model_the_same_report_is_made_again(kind: str, finished: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = Path(shutil.copytree(finished / kind, tmp_path / kind))
    before, page = (folder / "report.json").read_bytes(), (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.json").read_bytes() == before
    assert (folder / "report.html").read_text().splitlines() == page.decode().splitlines()
    assert "report.html" in capsys.readouterr().out
    (folder / "report.json").unlink()
    if kind == "run":  # an audit without its report looks like an interrupted one
        assert main(["report", str(folder)]) == 0
        assert (folder / "report.json").read_bytes() == before


def test_figures_follow_the_transcripts_and_the_rest_survives(run: Path) -> None:
    before = report_of(run)
    assert main(["report", str(run)]) == 0
    after = report_of(run)
    for side in ("base", "edited"):
        stored = read(run / "transcripts" / f"{side}.jsonl")
        for name, entry in after["sets"].items():
            refused = sum(judge(t.response).outcome == "refused" for t in stored if t.set == name)
            assert entry[side]["refused"]["k"] == refused
    assert sum(entry["base"]["refused"]["k"] for entry in after["sets"].values()) > 0
    assert [after[key] for key in ("selection", "edit", "cost", "run")] == [before[key] for key in ("selection", "edit", "cost", "run")]
    assert after["drift"]["kl_first_token"] == before["drift"]["kl_first_token"]
    assert "judge" not in after and not (run / "agreement.json").exists()


def test_an_edit_whose_checkpoint_lies_elsewhere_by_now_is_still_in_the_report(run: Path) -> None:
    before = report_of(run)["edit"]
    shutil.rmtree(run / "checkpoint")
    assert main(["report", str(run)]) == 0
    assert before is not None and report_of(run)["edit"] == before


def test_the_checkpoints_card_says_what_the_report_says(run: Path, server: StandIn) -> None:
    server.answers = lambda message: completion("deflected")
    assert main(["report", str(run), "--judge", f"chat:{server.url}#tiny"]) == 0
    card = (run / "checkpoint" / "README.md").read_text(encoding="utf-8")
    assert "100.0 %" in card and "judged by chat:SERVER#tiny" in card.replace("\\", "") and server.url not in card
    assert check_sums(run / "checkpoint") > 0  # including the card that was just written


def test_another_judge_gives_the_figures_and_its_agreement_with_the_rules(run: Path, server: StandIn) -> None:
    """A judge that calls every second answer a deflection."""
    server.answers = lambda message: completion(f'{{"outcome": "{opinion(judged_reply(message))}"}}')

    def opinion(reply: str) -> str:
        digits = "".join(c for c in reply if c.isdigit())
        return "refused" if not digits else "deflected" if int(digits) % 2 else "answered"

    assert main(["report", str(run), "--judge", f"chat:{server.url}#tiny"]) == 0
    report = report_of(run)
    stored = {side: read(run / "transcripts" / f"{side}.jsonl") for side in ("base", "edited")}
    pairs = [(t.verdict().outcome, opinion(t.response)) for side in stored.values() for t in side]
    told = report["judge"]
    assert told["name"] == f"chat:{server.url}#tiny" and told["n"] == len(pairs) and told["unjudged"] == 0
    assert told["kappa"] == pytest.approx(cohens_kappa(pairs)) and 0 < told["kappa"] < 1
    assert told["disagreements"] == sum(a != b for a, b in pairs) > 0
    for name, entry in report["sets"].items():
        said = [opinion(t.response) for t in stored["base"] if t.set == name]
        assert entry["base"]["outcomes"]["deflected"] == said.count("deflected")
        of_set = [(t.verdict().outcome, opinion(t.response)) for side in stored.values() for t in side if t.set == name]
        assert told["by_set"][name]["kappa"] == pytest.approx(cohens_kappa(of_set)) and told["by_set"][name]["n"] == len(of_set)
    agreement = json.loads((run / "agreement.json").read_text(encoding="utf-8"))
    assert {key: value for key, value in agreement.items() if key != "rows"} == told
    assert len(agreement["rows"]) == told["disagreements"]
    responses = {(side, t.set, t.id): t.response for side, found in stored.items() for t in found}
    for row in agreement["rows"]:
        assert (row["rules"], row["judge"]) == ("answered", "deflected")
        assert responses[row["model"], row["set"], row["id"]] == row["response"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "chat:SERVER" in page and server.url not in page  # as on the card: a server's address stays private


def test_what_only_the_rules_can_say_is_null_under_another_judge(run: Path, server: StandIn) -> None:
    server.answers = lambda message: completion("refused")
    main(["report", str(run)])
    entry = report_of(run)["sets"]["target"]["base"]
    assert entry["withheld"]["corrected"]["ci95"][0] <= entry["withheld"]["corrected"]["rate"] <= entry["withheld"]["corrected"]["ci95"][1]
    assert "corrected" in (run / "report.html").read_text(encoding="utf-8")
    main(["report", str(run), "--judge", f"chat:{server.url}#tiny"])
    report = report_of(run)
    assert report["sets"]["target"]["base"]["withheld"]["corrected"] is None
    assert "sets.target.base.withheld.corrected" in report["not_measured"] and "recovery" in report["not_measured"]
    assert "judge.kappa" in report["not_measured"] or report["judge"]["kappa"] is not None


def test_back_under_the_rules_it_is_the_report_that_it_was(run: Path, server: StandIn) -> None:
    main(["report", str(run)])
    before = (run / "report.json").read_bytes()
    server.answers = lambda message: completion("refused")
    main(["report", str(run), "--judge", f"chat:{server.url}#tiny"])
    assert (run / "report.json").read_bytes() != before
    main(["report", str(run)])
    assert (run / "report.json").read_bytes() == before


def test_a_prompt_with_an_unjudged_reply_counts_nowhere_and_that_is_said(run: Path, server: StandIn, capfd: Capture) -> None:
    silent = next(t.response for t in read(run / "transcripts" / "edited.jsonl") if t.set == "target" and "Sure" in t.response)
    server.answers = lambda message: completion("hm" if judged_reply(message) == silent else "answered")
    n = report_of(run)["sets"]["target"]["n"]
    assert main(["report", str(run), "--judge", f"chat:{server.url}#tiny"]) == 0
    report, rows = report_of(run), json.loads((run / "agreement.json").read_text(encoding="utf-8"))["rows"]
    assert report["sets"]["target"]["n"] == n - 1 and report["judge"]["unjudged"] == report["judge"]["by_set"]["target"]["unjudged"] == 1
    assert [row["model"] for row in rows if row["judge"] == "unjudged"] == ["edited"]
    assert "gave no outcome for 1 of" in capfd.readouterr().err and "1 were left unjudged" in (run / "report.html").read_text()


def test_a_judge_that_judges_nothing_leaves_the_report_as_it_was(run: Path, server: StandIn, capsys: Capture) -> None:
    before = (run / "report.json").read_bytes()
    server.answers = lambda message: completion("hm")
    assert main(["report", str(run), "--judge", f"chat:{server.url}#tiny"]) == 2
    assert "gave no outcome for any prompt of 'target'" in capsys.readouterr().err
    assert (run / "report.json").read_bytes() == before and not (run / "agreement.json").exists()


def test_replies_of_a_server_in_any_order_are_put_in_that_of_the_base(run: Path) -> None:
    main(["report", str(run)])
    before, page = (run / "report.json").read_bytes(), (run / "report.html").read_bytes()
    file = run / "transcripts" / "edited.jsonl"
    file.write_text("".join(line + "\n" for line in reversed(file.read_text().splitlines())))
    main(["report", str(run)])
    assert (run / "report.json").read_bytes() == before and (run / "report.html").read_bytes() == page


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        (["run.json"], "not a run folder"),
        (["report.json", "drift.json"], "not finished"),
        (["transcripts/base.jsonl"], "transcripts are missing"),
        (["transcripts/edited.jsonl"], "transcripts are missing"),
    ],
)
def test_what_is_no_finished_run_is_refused_in_one_line(missing: list[str], named: str, run: Path, capsys: Capture) -> None:
    for name in missing:
        (run / name).unlink()
    assert main(["report", str(run)]) == 2
    told = capsys.readouterr().err
    assert named in told and told.count("\n") == 1


@pytest.mark.parametrize(("kind", "which"), [("run", "edited"), ("run", "base"), ("audit", "base")])
def test_a_transcript_that_is_cut_off_is_missed(kind: str, which: str, finished: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = Path(shutil.copytree(finished / kind, tmp_path / kind))
    file = folder / "transcripts" / f"{which}.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    assert main(["report", str(folder)]) == 2
    assert "transcripts are missing" in capsys.readouterr().err


def test_directions_of_an_older_version_cost_a_plot_and_not_the_report(run: Path) -> None:
    save_file({"mean": torch.zeros(1, 3, 4)}, run / "directions.safetensors")  # the old format, without a header
    assert main(["report", str(run)]) == 0
    assert "Separation by layer</h3>" not in (run / "report.html").read_text(encoding="utf-8")


def test_a_comparison_of_weights_alone_stays_one_of_two_models(tmp_path: Path) -> None:
    sides = [part for i, which in enumerate(("base", "derived")) for part in (f"--{which}", str(save_tiny(tmp_path / which, seed=i)))]
    assert main(["compare", *sides, "--weights-only", "--out", str(tmp_path / "out")]) == 0
    before = (tmp_path / "out" / "report.json").read_bytes()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.json").read_bytes() == before
