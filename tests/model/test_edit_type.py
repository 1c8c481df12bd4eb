"""Plans: what a direction becomes, and that a stranger's plan file can only be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from abliterate.errors import InputError
from abliterate.model.edit import (
    Edit,
    edit_from_direction,
    edit_from_rows,
    load_direction,
    load_edit,
    resolve_embedding,
    save_edit,
    unit,
    whole_edit,
)

LAYERS, WIDTH = 3, 8


def _direction(k: int = 1, components: int = 2) -> torch.Tensor:
    square = torch.randn(LAYERS, components, WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(square).Q[..., :k, :].contiguous()


def _shared() -> torch.Tensor:
    return torch.eye(1, WIDTH).expand(LAYERS, 2, 1, WIDTH).contiguous()


def _file(path: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> Path:
    given = {"direction": _direction(), "strength": torch.ones(LAYERS, 2)} | tensors
    save_file(given, path, {"components": '["attention","mlp"]', "embedding": "skip"} | (metadata or {}))
    return path


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.floats(1e-20, 1e20), st.integers(0, 1000))
def test_unit_keeps_the_way_and_makes_the_length_one(width: int, scale: float, seed: int) -> None:
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed)) * scale
    made = unit(vector)
    assert float(made.norm()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(made.double() * vector.double().norm(), vector.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_unit_takes_any_float_type(dtype: torch.dtype) -> None:
    assert torch.equal(unit(torch.tensor([0.0, 2.0]).to(dtype)), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_direction_without_a_length_is_refused(bad: float) -> None:
    rows = torch.ones(LAYERS, WIDTH)
    rows[1] = bad
    for direction in (rows, rows[1]):
        with pytest.raises(InputError, match=r"length zero|NaN or infinite"):
            edit_from_direction(direction, LAYERS)


def test_one_direction_serves_every_writer() -> None:
    edit = edit_from_direction(torch.tensor([3.0, 4.0]), LAYERS, 0.25)
    assert edit.same_everywhere()
    assert edit.direction.shape == (LAYERS, 2, 1, 2)
    assert torch.equal(edit.strength, torch.full((LAYERS, 2), 0.25))
    torch.testing.assert_close(edit.direction[2, 1, 0], torch.tensor([0.6, 0.8]))


def test_row_l_of_a_direction_per_block_serves_block_l() -> None:
    edit = edit_from_direction(torch.eye(LAYERS, WIDTH) * 7, LAYERS)
    assert not edit.same_everywhere()
    assert all(torch.equal(edit.direction[layer, c, 0], torch.eye(LAYERS, WIDTH)[layer]) for layer in range(LAYERS) for c in range(2))


@pytest.mark.parametrize(
    ("policy", "one", "tied", "expected"),
    [
        ("auto", True, False, "edit"),
        ("auto", True, True, "skip"),
        ("auto", False, False, "skip"),
        ("auto", False, True, "skip"),
        ("edit", True, True, "edit"),
        ("edit", True, False, "edit"),
        ("skip", True, False, "skip"),
        ("skip", False, True, "skip"),
        ("untie", True, True, "untie"),
        ("untie", True, False, "edit"),
    ],
)
def test_the_embedding_policy(policy: Any, one: bool, tied: bool, expected: str) -> None:
    assert resolve_embedding(policy, one, tied) == expected
    direction = torch.ones(WIDTH) if one else torch.eye(LAYERS, WIDTH)
    assert edit_from_direction(direction, LAYERS, policy=policy, tied=tied).embedding == expected


@pytest.mark.parametrize("policy", ["edit", "untie"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_embedding_cant_be_edited_with_a_direction_per_block(policy: Any, tied: bool) -> None:
    with pytest.raises(InputError, match="one direction serves all blocks"):
        edit_from_direction(torch.eye(LAYERS, WIDTH), LAYERS, policy=policy, tied=tied)


def test_the_embedding_loses_the_shared_rows_as_strongly_as_the_strongest_writer() -> None:
    edit = Edit(_shared(), torch.tensor([[0.1, 0.6], [0.0, 0.2], [0.0, 0.0]]), "untie", True)
    assert edit.embedding_strength == pytest.approx(0.6)
    assert torch.equal(edit.embedding_direction(), torch.eye(1, WIDTH))
    half = edit.scaled(0.5)
    assert half.embedding_strength == pytest.approx(0.3) and (half.embedding, half.keep_norms) == ("untie", True)
    assert edit.scaled(0.0).embedding_direction() is None
    assert Edit(_shared(), torch.ones(LAYERS, 2), "skip").embedding_direction() is None


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(0, 1000))
def test_rows_of_a_block_become_orthonormal_and_keep_their_span_and_the_first_its_way(k: int, seed: int) -> None:
    rows = torch.randn(LAYERS, k, WIDTH, generator=torch.Generator().manual_seed(seed)) * 7
    edit = edit_from_rows(rows, torch.full((LAYERS, 2), 0.5))
    assert edit.direction.shape == (LAYERS, 2, k, WIDTH) and edit.embedding == "skip"
    for layer in range(LAYERS):
        made = edit.direction[layer, 1].double()
        torch.testing.assert_close(made @ made.T, torch.eye(k, dtype=torch.float64), atol=1e-6, rtol=0)
        inside = rows[layer].double() @ made.T @ made
        torch.testing.assert_close(inside, rows[layer].double(), atol=1e-4, rtol=0)
        torch.testing.assert_close(made[0].float(), unit(rows[layer, 0]), atol=1e-6, rtol=0)


def test_rows_that_are_not_independent_are_refused_where_they_are_used() -> None:
    rows = torch.stack([torch.eye(2, WIDTH), torch.ones(2, WIDTH), torch.eye(2, WIDTH)])
    strength = torch.ones(LAYERS, 2)
    with pytest.raises(InputError, match="not independent"):
        edit_from_rows(rows, strength)
    strength[1] = 0
    assert torch.equal(edit_from_rows(rows, strength).strength, strength)


def test_the_whole_plan_touches_every_writer_and_no_embedding() -> None:
    edit = whole_edit(LAYERS, WIDTH)
    assert edit.direction.shape == (LAYERS, 2, 1, WIDTH) and bool((edit.strength == 1).all())
    assert edit.embedding_direction() is None


@pytest.mark.parametrize("keep_norms", [False, True])
@pytest.mark.parametrize("embedding", ["edit", "skip", "untie"])
def test_a_saved_plan_is_loaded_unchanged(tmp_path: Path, embedding: Any, keep_norms: bool) -> None:
    edit = Edit(_shared(), torch.rand(LAYERS, 2), embedding, keep_norms)
    save_edit(edit, tmp_path / "p")
    back = load_edit(tmp_path / "p")
    assert torch.equal(back.direction, edit.direction)
    assert torch.equal(back.strength, edit.strength)
    assert (back.embedding, back.keep_norms) == (embedding, keep_norms)


@pytest.mark.parametrize(("norms", "keeps"), [({}, False), ({"norms": "free"}, False), ({"norms": "keep"}, True)])
def test_a_plan_says_whether_norms_are_kept_and_without_a_word_they_are_not(tmp_path: Path, norms: dict[str, str], keeps: bool) -> None:
    assert load_edit(_file(tmp_path / "p", norms)).keep_norms is keeps


def test_a_plan_of_several_rows_and_half_precision_strengths_is_loaded(tmp_path: Path) -> None:
    edit = load_edit(_file(tmp_path / "p", direction=_direction(3), strength=torch.full((LAYERS, 2), 0.5).half()))
    assert edit.direction.shape == (LAYERS, 2, 3, WIDTH)
    assert edit.strength.dtype == torch.float32


def test_loaded_rows_are_orthonormal_to_float32_rounding(tmp_path: Path) -> None:
    rows = load_edit(_file(tmp_path / "p", direction=_direction(2) * (1 + 4e-4))).direction
    gram = rows.double() @ rows.double().transpose(-1, -2)
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64).expand_as(gram), atol=1e-6, rtol=0)


NAN = float("nan")
VIOLATIONS: dict[str, tuple[dict[str, str], dict[str, torch.Tensor]]] = {
    "three dimensions": ({}, {"direction": _direction()[:, :, 0]}),
    "strength of another shape": ({}, {"strength": torch.ones(LAYERS)}),
    "strength of fewer layers": ({}, {"strength": torch.ones(LAYERS - 1, 2)}),
    "strength above one": ({}, {"strength": torch.full((LAYERS, 2), 1.01)}),
    "negative strength": ({}, {"strength": torch.full((LAYERS, 2), -0.01)}),
    "strength NaN": ({}, {"strength": torch.full((LAYERS, 2), NAN)}),
    "rows not of length one": ({}, {"direction": _direction() * 2}),
    "rows of length zero": ({}, {"direction": _direction() * 0}),
    "rows NaN": ({}, {"direction": _direction() * NAN}),
    "rows not orthogonal": ({}, {"direction": _direction().expand(-1, -1, 2, -1).contiguous()}),
    "no rows": ({}, {"direction": torch.empty(LAYERS, 2, 0, WIDTH)}),
    "one component": ({}, {"direction": _direction(components=1), "strength": torch.ones(LAYERS, 1)}),
    "three components": ({}, {"direction": _direction(components=3), "strength": torch.ones(LAYERS, 3)}),
    "one component, the names as saved": (
        {"components": json.dumps(["attention", "mlp"])},
        {"direction": _direction(components=1), "strength": torch.ones(LAYERS, 1)},
    ),
    "three components, the names as saved": (
        {"components": json.dumps(["attention", "mlp"])},
        {"direction": _direction(components=3), "strength": torch.ones(LAYERS, 3)},
    ),
    "components in another order": ({"components": '["mlp","attention"]'}, {}),
    "components not JSON": ({"components": "attention,mlp"}, {}),
    "components a number": ({"components": "5"}, {}),
    "components nested deep": ({"components": "[" * 200_000}, {}),
    "an unknown embedding": ({"embedding": "perhaps"}, {}),
    "norms neither kept nor free": ({"norms": "perhaps"}, {}),
    "embedding edit, a direction per block": ({"embedding": "edit"}, {}),
    "embedding untie, a direction per block": ({"embedding": "untie"}, {}),
    "embedding edit, long rows that no block uses": (
        {"embedding": "edit"},
        {"direction": _shared() * 5, "strength": torch.zeros(LAYERS, 2)},
    ),
    "embedding edit, zero rows that no block uses": (
        {"embedding": "edit"},
        {"direction": _shared() * 0, "strength": torch.zeros(LAYERS, 2)},
    ),
    "another tensor": ({}, {"more": torch.ones(1)}),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_plan_that_breaks_the_contract_is_refused(tmp_path: Path, violation: str) -> None:
    metadata, tensors = VIOLATIONS[violation]
    with pytest.raises(InputError) as refused:
        load_edit(_file(tmp_path / "p", metadata, **tensors))
    assert str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_file_of_the_other_kind_is_refused_with_the_flag_that_takes_it(tmp_path: Path) -> None:
    save_edit(edit_from_direction(torch.ones(WIDTH), LAYERS), tmp_path / "plan")
    save_file({"direction": torch.ones(WIDTH)}, tmp_path / "direction")
    with pytest.raises(InputError, match=r"plan: a plan file.* --plan$"):
        load_direction(tmp_path / "plan")
    with pytest.raises(InputError, match=r"direction: a direction file.* --direction$"):
        load_edit(tmp_path / "direction")


def test_a_plan_without_metadata_is_refused(tmp_path: Path) -> None:
    save_file({"direction": _direction(), "strength": torch.ones(LAYERS, 2)}, tmp_path / "p")
    with pytest.raises(InputError, match="components"):
        load_edit(tmp_path / "p")


def test_rows_that_no_strength_uses_may_be_anything(tmp_path: Path) -> None:
    direction, strength = _direction(), torch.ones(LAYERS, 2)
    direction[1, 0], strength[1, 0] = 0, 0
    assert load_edit(_file(tmp_path / "p", direction=direction, strength=strength)).strength[1, 0] == 0


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=100))
def test_arbitrary_bytes_are_neither_plan_nor_direction(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    for read in (load_edit, load_direction):
        with pytest.raises(InputError) as refused:
            read(path)
        assert len(str(refused.value).splitlines()) == 1


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="no such file"):
            load_direction(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(WIDTH,), (LAYERS, WIDTH)])
def test_a_direction_file_of_any_float_type_and_length_is_read(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    direction = (torch.ones(shape) * 5).to(dtype)
    save_file({"direction": direction}, tmp_path / "d")
    assert torch.equal(load_direction(tmp_path / "d"), direction)


@pytest.mark.parametrize(
    ("name", "direction", "message"),
    [
        ("other", torch.ones(WIDTH), "no tensor 'direction'; it has other"),
        ("direction", torch.ones(WIDTH, dtype=torch.int64), "float tensor"),
        ("direction", torch.ones(1, 2, WIDTH), "shape"),
        ("direction", torch.tensor(1.0), "shape"),
        ("direction", torch.zeros(WIDTH), "length zero"),
        ("direction", torch.empty(0), "length zero"),
        ("direction", torch.empty(0, WIDTH), "d"),
        ("direction", torch.full((WIDTH,), NAN), "NaN"),
        ("direction", torch.full((WIDTH,), float("inf")), "infinite"),
        ("direction", torch.eye(LAYERS, WIDTH) * torch.tensor([[1.0], [0], [1]]), "length zero"),
    ],
)
def test_a_bad_direction_file_is_refused_by_what_is_wrong(tmp_path: Path, name: str, direction: torch.Tensor, message: str) -> None:
    save_file({name: direction}, tmp_path / "d")
    with pytest.raises(InputError, match=message):
        edit_from_direction(load_direction(tmp_path / "d"), LAYERS)
