"""The proof is measured on the bytes on disk and fails where they are not exact."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from abliterate.checkpoint.index import SINGLE, open_index
from abliterate.checkpoint.proof import NAME, TensorProof, proof_document, prove, write_proof
from abliterate.checkpoint.tasks import EditTask
from abliterate.checkpoint.write import write_shards
from abliterate.errors import CheckError

ROW = torch.tensor([[0.6, 0.8, 0.0, 0.0]])


def _edited(tmp_path: Path, strength: float = 1.0) -> tuple[Path, Path, dict[str, EditTask]]:
    source, out = tmp_path / "model", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    torch.manual_seed(0)
    save_file({"w": torch.randn(4, 6), "v": torch.randn(4, 6)}, source / SINGLE)
    tasks = {"w": EditTask("w", "mlp", 0, ROW, strength)}
    write_shards(open_index(source), tasks, out, lambda done: None)
    return source, out, tasks


def _prove(source: Path, out: Path, tasks: dict[str, EditTask]) -> list[TensorProof]:
    return prove(open_index(source), out, tasks, lambda done: None)


def test_a_full_edit_proves_nothing_left(tmp_path: Path) -> None:
    source, out, tasks = _edited(tmp_path)
    (proof,) = _prove(source, out, tasks)
    expected = float((ROW @ load_file(source / SINGLE)["w"]).norm())
    assert proof.before == pytest.approx(expected, rel=1e-5)
    assert proof.left < 1e-6 and proof.error < 1e-6


def test_a_half_edit_proves_half_left(tmp_path: Path) -> None:
    (proof,) = _prove(*_edited(tmp_path, 0.5))
    assert proof.left == pytest.approx(0.5, abs=1e-5)
    assert proof.error < 1e-6


def test_the_hash_is_of_the_tensors_bytes_on_disk(tmp_path: Path) -> None:
    source, out, tasks = _edited(tmp_path)
    (proof,) = _prove(source, out, tasks)
    assert proof.sha256 == hashlib.sha256(load_file(out / SINGLE)["w"].numpy().tobytes()).hexdigest()


def test_an_edit_that_did_not_happen_fails_the_proof(tmp_path: Path) -> None:
    source, _, tasks = _edited(tmp_path)
    with pytest.raises(CheckError, match="worst: w"):
        _prove(source, source, tasks)


def test_a_little_left_over_fails_the_proof(tmp_path: Path) -> None:
    source, out, tasks = _edited(tmp_path)
    tensors = load_file(out / SINGLE)
    tensors["w"] += 1e-4 * ROW.T
    save_file(tensors, out / SINGLE)
    with pytest.raises(CheckError, match="keep more of the direction"):
        _prove(source, out, tasks)


def test_a_tensor_lost_on_the_way_fails_the_proof(tmp_path: Path) -> None:
    source, out, tasks = _edited(tmp_path)
    save_file({"w": load_file(out / SINGLE)["w"]}, out / SINGLE)
    with pytest.raises(CheckError, match="not those of"):
        _prove(source, out, tasks)


def test_a_tensor_turned_to_nan_fails_the_proof(tmp_path: Path) -> None:
    source, out, tasks = _edited(tmp_path)
    tensors = load_file(out / SINGLE)
    tensors["w"][1, 1] = torch.nan
    save_file(tensors, out / SINGLE)
    with pytest.raises(CheckError):
        _prove(source, out, tasks)


def test_a_tensor_of_zeros_is_proven(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4, 6)}, tmp_path / SINGLE)
    (proof,) = _prove(tmp_path, tmp_path, {"w": EditTask("w", "mlp", 0, ROW, 1.0)})
    assert proof.left == proof.error == 0.0


def test_the_document_is_strict_json_and_names_its_worst_tensor(tmp_path: Path) -> None:
    proofs = _prove(*_edited(tmp_path))
    write_proof(proof_document(proofs, "é", "skip", True, ["x: why"]), tmp_path)
    document = json.loads((tmp_path / NAME).read_text(encoding="utf-8"), parse_constant=lambda constant: pytest.fail(constant))
    assert document["schema"] == "abliterate/abliteration/1"
    assert document["worst"]["error"] == proofs[0].error
    assert document["base_model"] == "é" and document["not_edited"] == ["x: why"]
