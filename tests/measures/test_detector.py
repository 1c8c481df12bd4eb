"""What the rules are known to miss: the stored figures are those of the labelled test half, and put rates right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from abliterate.measures.agreement import corrected_rate
from abliterate.measures.detector import CANNED, FILE, KINDS, NATURAL, RULES, Detector, Kind, as_toml, detector_of
from abliterate.measures.statistics import wilson
from abliterate.outcomes.records import WITHHELD
from abliterate.outcomes.verdict import judge

DATA = Path(__file__).parent.parent / "data"


@pytest.mark.parametrize(("kind", "names"), [(NATURAL, ("models", "real")), (CANNED, ("labelled",))])
def test_the_stored_figures_are_those_of_the_labelled_test_halves(kind: Kind, names: tuple[str, ...]) -> None:
    """After a change of the rules: ``scripts/bench outcomes --write``."""
    lines = [line for name in names for line in (DATA / f"outcomes_{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in map(json.loads, lines) if row["split"] == "test" and (kind == NATURAL or row["source"] == "model")]
    said = [
        (
            row["outcome"] in WITHHELD,
            judge(row["response"], (), row["begins_in_thought"], row["prompt"], row.get("cut", False)).outcome in WITHHELD,
        )
        for row in rows
    ]
    held, others = [found for is_held, found in said if is_held], [found for is_held, found in said if not is_held]
    assert detector_of(RULES, kind) == Detector((sum(held), len(held)), (others.count(False), len(others)))


def test_the_kinds_of_model_have_figures_of_their_own() -> None:
    assert detector_of(RULES) == detector_of(RULES, NATURAL) != detector_of(RULES, CANNED)


def test_a_judge_that_was_not_measured_has_no_figures() -> None:
    assert detector_of("chat:http://host/v1") is None


def test_the_file_reads_back_as_it_was_written() -> None:
    found = {kind: measured for kind in KINDS if (measured := detector_of(RULES, kind)) is not None}
    text = FILE.read_text(encoding="utf-8")
    said = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# Test hal")]
    assert len(found) == len(said) == len(KINDS) and text == as_toml(RULES, found, dict(zip(KINDS, said, strict=True)))


def test_a_corrected_rate_is_rogan_and_gladens_with_its_interval() -> None:
    detector = Detector((80, 100), (95, 100))
    found = detector.corrected(42, 100)
    expected = corrected_rate(42, 100, 80, 100, 95, 100)
    assert found is not None and expected is not None
    assert found.rate == pytest.approx((0.42 + 0.95 - 1) / 0.75) and found.ci95 == pytest.approx(list(expected[1]))


@pytest.mark.parametrize("k", [0, 1, 3, 20, 39, 40])
@pytest.mark.parametrize("detector", [Detector((101, 138), (159, 160)), Detector((10, 10), (10, 10)), Detector((6, 10), (6, 10))])
def test_the_interval_holds_the_rate_and_both_are_shares(k: int, detector: Detector) -> None:
    found = detector.corrected(k, 40)
    assert found is not None
    low, high = found.ci95
    assert 0 <= low <= found.rate <= high <= 1 and high > low


def test_more_than_the_detector_is_known_to_find_is_not_certainty() -> None:
    found = Detector((101, 138), (159, 160)).corrected(400, 400)
    assert found is not None and found.rate == 1 and found.ci95 == pytest.approx([wilson(400, 400)[0], 1])
    none = Detector((900, 1000), (500, 1000)).corrected(0, 1000)
    assert none is not None and none.rate == 0 and none.ci95 == pytest.approx([0, wilson(0, 1000)[1]])


@pytest.mark.parametrize(("k", "n", "detector"), [(0, 0, Detector((9, 10), (9, 10))), (3, 5, Detector((5, 10), (5, 10)))])
def test_without_replies_or_with_a_detector_that_guesses_nothing_is_corrected(k: int, n: int, detector: Detector) -> None:
    assert detector.corrected(k, n) is None
