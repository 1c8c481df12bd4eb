"""The proof is measured on the bytes on disk and fails where they are not exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from abliterate.checkpoint.orthogonalise import read_component
from abliterate.checkpoint.output import plan_output
from abliterate.checkpoint.proof import prove
from abliterate.checkpoint.records import TensorProof
from abliterate.checkpoint.stream import Before, write_shards
from abliterate.checkpoint.tasks import EditTask
from abliterate.errors import CheckError, InputError
from abliterate.model.formats.plain import PLAIN
from abliterate.model.index import SINGLE, open_index
from abliterate.model.removal import removal

ROW = torch.tensor([[0.6, 0.8, 0.0, 0.0]])
ROWS = torch.tensor([[0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
GAMMA = torch.tensor([0.5, 2.0, -1.0, 3.0])
TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


class Edited:
    """A checkpoint of two tensors, one of them edited."""

    def __init__(self, tmp_path: Path, strength: float = 1.0, dtype: torch.dtype = torch.float32, **task: Any) -> None:
        self.source, self.out = tmp_path / "model", tmp_path / "out"
        self.source.mkdir()
        self.out.mkdir()
        torch.manual_seed(0)
        save_file({"w": torch.randn(4, 6).to(dtype), "v": torch.randn(4, 6)}, self.source / SINGLE)
        self.tasks = {"w": EditTask("w", "mlp", 0, task.pop("removal", removal(ROW)), strength, **task)}
        index = open_index(self.source)
        self.before: dict[str, Before] = write_shards(index, plan_output(index, self.tasks), self.tasks, self.out)

    def proof(self) -> TensorProof:
        heard: list[int] = []
        (proof,) = prove(open_index(self.out), self.tasks, self.before, heard.append)
        assert heard == [open_index(self.out).tensors[proof.name].nbytes]
        return proof

    def change(self, **tensors: torch.Tensor) -> None:
        save_file(load_file(self.out / SINGLE) | tensors, self.out / SINGLE)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_full_edit_proves_nothing_left(tmp_path: Path, dtype: torch.dtype) -> None:
    edited = Edited(tmp_path, dtype=dtype)
    proof = edited.proof()
    expected = float((ROW.double() @ load_file(edited.source / SINGLE)["w"].double()).norm())
    assert proof.before == pytest.approx(expected, rel=1e-5)
    assert proof.aim == 0.0
    assert proof.left < 10 * PLAIN.tolerance(proof.dtype) and proof.error < PLAIN.tolerance(proof.dtype)


@pytest.mark.parametrize("keep_norms", [False, True])
def test_a_half_edit_proves_half_left(tmp_path: Path, keep_norms: bool) -> None:
    proof = Edited(tmp_path, 0.5, keep_norms=keep_norms).proof()
    assert proof.error < 1e-6
    assert proof.aim == pytest.approx(proof.after, rel=1e-5)
    if keep_norms:  # longer columns hold more of it
        assert 0.5 * proof.before < proof.after < proof.before
    else:
        assert proof.left == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("keep_norms", [False, True])
@pytest.mark.parametrize("gamma", [None, GAMMA])
@pytest.mark.parametrize("rows", [ROW, ROWS])
def test_every_kind_of_edit_is_proven(tmp_path: Path, keep_norms: bool, gamma: torch.Tensor | None, rows: torch.Tensor) -> None:
    edited = Edited(tmp_path, removal=removal(rows, gamma), keep_norms=keep_norms)
    proof, old = edited.proof(), load_file(edited.source / SINGLE)["w"]
    entering = old if gamma is None else gamma[:, None] * old
    assert proof.before == pytest.approx(float((rows @ entering).norm()), rel=1e-5)
    assert proof.left < 1e-6 and proof.error < 1e-6


def test_an_edit_behind_a_norm_is_measured_as_it_enters_the_stream(tmp_path: Path) -> None:
    edited = Edited(tmp_path, removal=removal(ROW, GAMMA))
    new = load_file(edited.out / SINGLE)["w"]
    assert edited.proof().after == pytest.approx(float((ROW @ (GAMMA[:, None] * new)).norm()), abs=1e-6)
    assert float((ROW @ new).norm()) > 0.1  # as a plain projection it would not be one


def test_the_hashes_are_of_the_tensors_bytes_on_disk(tmp_path: Path) -> None:
    edited = Edited(tmp_path)
    proof = edited.proof()
    for digest, folder in ((proof.blake3_before, edited.source), (proof.blake3_after, edited.out)):
        assert digest == blake3(load_file(folder / SINGLE)["w"].numpy().tobytes()).hexdigest()


def test_an_edit_that_did_not_happen_fails_the_proof(tmp_path: Path) -> None:
    edited = Edited(tmp_path)
    with pytest.raises(CheckError, match="worst: w"):
        prove(open_index(edited.source), edited.tasks, edited.before)


@pytest.mark.parametrize(("dtype", "left"), [(torch.float64, 1e-4), (torch.float32, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("gamma", [None, GAMMA])
def test_a_little_left_over_fails_the_proof(tmp_path: Path, dtype: torch.dtype, left: float, gamma: torch.Tensor | None) -> None:
    task = removal(ROW, gamma)
    edited = Edited(tmp_path, dtype=dtype, removal=task)
    assert edited.proof().error <= PLAIN.tolerance(open_index(edited.out).tensors["w"].dtype)
    edited.change(w=(load_file(edited.out / SINGLE)["w"].double() + left * task.w).to(dtype))
    with pytest.raises(CheckError, match="keep more of the direction"):
        edited.proof()


def test_too_much_removed_fails_the_proof_of_a_half_edit(tmp_path: Path) -> None:
    edited = Edited(tmp_path, 0.6)
    edited.before["w"] = replace(edited.before["w"], aim=0.5 * edited.before["w"].component)
    with pytest.raises(CheckError, match="worst: w"):
        edited.proof()


def test_an_edited_tensor_lost_on_the_way_fails_the_proof(tmp_path: Path) -> None:
    edited = Edited(tmp_path)
    save_file({"v": load_file(edited.out / SINGLE)["v"]}, edited.out / SINGLE)
    with pytest.raises(InputError, match="no tensor w"):
        edited.proof()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_tensor_turned_to_nan_fails_the_proof(tmp_path: Path, value: float) -> None:
    edited = Edited(tmp_path)
    tensor = load_file(edited.out / SINGLE)["w"]
    tensor[1, 1] = value
    edited.change(w=tensor)
    with pytest.raises(CheckError, match="worst: w, nan"):
        edited.proof()


def test_a_tensor_of_zeros_is_proven(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4, 6)}, tmp_path / SINGLE)
    task = EditTask("w", "mlp", 0, removal(ROW), 1.0)
    found = read_component(torch.zeros(4, 6), task.removal, 0)
    (proof,) = prove(open_index(tmp_path), {"w": task}, {"w": Before(found.along, 0.0, found.size, "")})
    assert proof.left == proof.error == 0.0
