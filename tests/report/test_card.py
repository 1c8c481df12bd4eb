"""The model card: valid front matter, users' words without markup, and all that was not measured."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from abliterate.evaluation.summary import Judged
from abliterate.evaluation.transcripts import Transcript
from abliterate.report.card import model_card, one_line
from abliterate.report.document import report_document
from abliterate.report.page import corrected


def proof(base_model: str = "org/model") -> dict[str, Any]:
    return {
        "base_model": base_model,
        "tensors": [{}] * 7,
        "worst": {"left": 1.5e-4, "error": 1e-7},
        "embedding": {"policy": "skip", "tied_to_unembedding": True},
    }


def judged(name: str, *responses: str) -> Judged:
    made = [Transcript(name, str(i), "q", response) for i, response in enumerate(responses)]
    return [(t, t.verdict()) for t in made]


def report(name: str = "bad") -> dict[str, Any]:
    no, yes = "I can't help with that.", "Paris."
    base = {name: judged(name, no, no, yes), "safe": judged("safe", no, no, no)}
    edited = {name: judged(name, yes, yes, yes), "safe": judged("safe", no, no, no)}
    drift = {"set": name, "ids": ["0", "1"], "kl_first_token": [0.1, 0.3]}
    run = {"settings": {"model": "m", "max_new_tokens": 64}}
    return report_document(run, {name: "target", "safe": "keep"}, base, edited, drift, {"chosen": {}}, {"tensors": 7}, 0.05)


def front_matter(card: str) -> dict[str, Any]:
    opening, matter, _ = card.split("---\n", 2)
    assert opening == ""
    loaded: dict[str, Any] = yaml.safe_load(matter)
    return loaded


def test_the_front_matter_names_the_base() -> None:
    assert front_matter(model_card(proof(), report())) == {
        "base_model": "org/model",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "tags": ["abliterated", "directional-ablation"],
    }


@pytest.mark.parametrize("folder", ["/home/someone/model", "./model", "../a/model", "model", "models/sub/llama"])
def test_a_folder_is_not_called_a_base_model_on_the_hub(folder: str) -> None:
    assert "base_model" not in front_matter(model_card(proof(folder), None))


@pytest.mark.parametrize("name", ["org/model: x", "org/model\nlicense: mit", "org/#1", 'org/"quoted', "org/{x", "- a/b", "org/a\n---\n# T"])
def test_any_base_name_leaves_the_front_matter_valid(name: str) -> None:
    assert set(front_matter(model_card(proof(name), None))) <= {"base_model", "base_model_relation", "library_name", "tags"}


def test_without_a_report_the_behaviour_is_called_not_measured() -> None:
    card = model_card(proof(), None)
    assert "**not measured**" in card and "| prompt set |" not in card


def test_the_rates_before_and_after_are_given_with_their_intervals() -> None:
    found = report()
    card, sides = model_card(proof(), found), found["sets"]["bad"]
    base, edited = (corrected(sides[side]["withheld"]) for side in ("base", "edited"))
    assert base.startswith("corrected ") and "corrected: without the errors" in card
    assert f"| bad | target | 3 | withheld | 66.7 % (2/3, 95 % 20.8–93.9; {base}) | 0.0 % (0/3, 95 % 0.0–56.1; {edited}) |" in card
    assert "| safe | keep | 3 | refused | 100.0 % (3/3" in card


def test_everything_not_measured_is_listed() -> None:
    document = report()
    card = model_card(proof(), document)
    assert document["not_measured"]
    assert all(f"- `{name}`\n" in card for name in document["not_measured"])


def test_a_keep_test_that_fails_is_said_to_fail() -> None:
    assert "did not fall by more than 5 points: **not shown**" in model_card(proof(), report())


def test_the_edit_is_described_by_the_proof() -> None:
    card = model_card(proof(), None)
    assert "7 tensors" in card and "1.50e-04" in card and "tied to the unembedding" in card


@pytest.mark.parametrize(
    ("name", "markup"),
    [
        ("<script>alert(1)</script>", "<script"),
        ("<img src=x onerror=alert(1)>", "<img"),
        ("a | b", "| a | b |"),
        ("a\n\n# Title", "\n# Title"),
        ("a`b`", "a`b`"),
        ("[free](https://evil.example)", "[free](https://evil.example)"),
        ("![seen](https://evil.example/pixel.png)", "![seen]("),
        ("**loud**", "| **loud** |"),
    ],
    ids=["script", "image tag", "cell", "heading", "code", "link", "image", "bold"],
)
def test_a_users_name_starts_no_markup(name: str, markup: str) -> None:
    assert markup not in model_card(proof(), report(name))


@pytest.mark.parametrize("name", ["a | b", "a\nb", "a\\|b", "a || b |"])
def test_every_row_of_the_table_has_six_cells(name: str) -> None:
    rows = [line for line in model_card(proof(), report(name)).splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {row.replace("\\|", "").count("|") for row in rows} == {7}


def test_one_line_is_one_line() -> None:
    assert one_line(" a\r\n b\u2028c\tlast ") == "a b c last"
