"""The proof as records: what is read and written again is the same file, and files of earlier and later versions are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abliterate.checkpoint.records import Proof, Worst
from abliterate.errors import CheckError, InputError
from abliterate.files import Json, write_json

WRITTEN = Path(__file__).parents[1] / "data" / "abliteration.json"  # of an FP8 model, written when the proof was not yet a record
NOT_READ = ("base_revision", "licence", "abliterate", "formula", "self_check")  # keys without which verify can do its work


def _object(values: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Json]:
    """Objects with these keys in this order."""
    return st.fixed_dictionaries(dict(values)).map(lambda made: {key: made[key] for key in values})


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TEXTS = st.lists(TEXT, max_size=2)
FIGURE = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
TENSOR = _object(
    {
        **dict.fromkeys(("name", "kind"), TEXT),
        "shape": st.lists(st.integers(0, 2**40), max_size=3),
        "dtype": TEXT,
        **dict.fromkeys(("strength", "before", "aim", "after", "left", "error"), FIGURE),
        **dict.fromkeys(("blake3_before", "blake3_after"), TEXT),
        **dict.fromkeys(("rounding", "plain_rounding"), st.none() | FIGURE),
    }
)
CHECKED = _object(
    {
        **dict.fromkeys(("architecture", "layout"), TEXT),
        "blocks": st.integers(0, 99),
        **dict.fromkeys(("before", "left", "logits", "kl"), FIGURE),
        **dict.fromkeys(("transformers", "torch"), TEXT),
    }
)
LICENCE = _object({"ids": TEXTS, "name": st.none() | TEXT, "link": st.none() | TEXT, "files": TEXTS, "bases": TEXTS})
DOCUMENT = _object(
    {
        "schema": st.just("abliterate/abliteration/2"),
        "abliterate": TEXT,
        "base_model": TEXT,
        "base_revision": st.none() | TEXT,
        "licence": st.none() | LICENCE,
        "embedding": _object({"policy": TEXT, "tied_to_unembedding": st.booleans()}),
        "norms": TEXT,
        "unpacked": TEXTS,
        "formula": TEXT,
        "self_check": CHECKED,
        "tensors": st.lists(TENSOR, max_size=3),
        "worst": _object({"left": FIGURE, "error": FIGURE}),
        "not_edited": TEXTS,
    }
)
LATER = st.dictionaries(st.sampled_from(["signed", "z", "é"]), st.none() | FIGURE | TEXTS | st.dictionaries(TEXT, TEXT, max_size=2))


def _put(document: Json, path: Path) -> Path:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _changed(tmp_path: Path, change: Callable[[Any], Any]) -> Path:
    document = json.loads(WRITTEN.read_text(encoding="utf-8"))
    change(document)
    return _put(document, tmp_path / "proof.json")


def test_a_proof_that_an_earlier_version_wrote_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    proof = Proof.read(WRITTEN)
    assert proof.base_revision == "abc" and proof.licence and proof.licence.bases == ("a/b", "c/d")
    assert (
        proof.self_check
        and proof.self_check.architecture == "deepseek_v3"
        and {tensor.dtype for tensor in proof.tensors} == {"BF16", "F8_E4M3"}
    )
    write_json(proof, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == WRITTEN.read_bytes()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=DOCUMENT, absent=st.sets(st.sampled_from(NOT_READ)), later=LATER)
def test_any_proof_is_read_and_written_again_byte_for_byte(tmp_path: Path, document: Json, absent: set[str], later: Json) -> None:
    path = _put({key: value for key, value in document.items() if key not in absent} | later, tmp_path / "proof.json")
    write_json(Proof.read(path), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_what_the_worst_tensor_keeps_stands_in_the_proof_once_more() -> None:
    tensors = Proof.read(WRITTEN).tensors
    worse = tensors[0].model_copy(update={"left": 0.5, "error": 0.25})
    assert Worst.of(tensors) == Proof.read(WRITTEN).worst
    assert Worst.of([worse, *tensors]) == Worst(left=0.5, error=0.25)
    assert Worst.of([]) == Worst(left=0.0, error=0.0)


def test_the_summary_of_the_report_is_that_of_the_proof() -> None:
    proof = Proof.read(WRITTEN)
    summary = proof.summary
    assert (summary.tensors, summary.worst_left, summary.worst_error) == (len(proof.tensors), proof.worst.left, proof.worst.error)
    assert (summary.embedding, summary.not_edited) == (proof.embedding, proof.not_edited)


def test_a_figure_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    proof = Proof.read(WRITTEN)
    broken = proof.model_copy(update={"worst": Worst(left=float("nan"), error=0.0)})
    with pytest.raises(CheckError, match="not finite"):
        write_json(broken, tmp_path / "proof.json")
    assert not (tmp_path / "proof.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema="abliterate/abliteration/1"), "schema: input should be 'abliterate/abliteration/2'"),
        (lambda d: d.pop("base_model"), "base_model: field required"),
        (lambda d: d["tensors"][1].pop("blake3_after"), "tensors.1.blake3_after: field required"),
        (lambda d: d["tensors"][0].update(shape=[32, "64"]), "tensors.0.shape.1: input should be a valid integer"),
        (lambda d: d["worst"].update(left="0"), "worst.left"),
        (lambda d: d["embedding"].update(more=1), "embedding.more: extra inputs are not permitted"),
    ],
)
def test_a_file_of_another_form_is_refused_by_its_key(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        Proof.read(_changed(tmp_path, change))
    assert said in str(error.value) and "\n" not in str(error.value)
