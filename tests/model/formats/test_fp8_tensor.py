"""FP8 with one scale a matrix: edited in its own grid, so that a removed direction stays removed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from packed import save_fp8_tensor, store, tensors_of

from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.verify import verify
from abliterate.compute.load import from_pretrained
from abliterate.errors import InputError
from abliterate.model.agreement import check_agreement
from abliterate.model.edit import Edit, edit_from_direction
from abliterate.model.folder import open_folder
from abliterate.model.formats.fp8 import FP8, LARGEST, SCALES
from abliterate.model.formats.fp8_tensor import INPUTS, TensorFp8
from abliterate.model.formats.rounding import round_nearest
from abliterate.model.index import open_index

DOWN = "model.layers.1.mlp.down_proj.weight"
STORED = TensorFp8()


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _row(d_model: int) -> torch.Tensor:
    return torch.nn.functional.normalize(_random(1, 1, d_model), dim=1)


def _edit(base: Path, out: Path) -> Edit:
    folder = open_folder(base)
    edit = edit_from_direction(_row(folder.d_model)[0], folder.layers)
    edit_checkpoint(folder, edit, out, "base", lambda proof: "card\n")
    return edit


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.flatten().view(torch.uint8).numpy())


def _left(tensors: dict[str, torch.Tensor], name: str) -> float:
    """What a matrix [d_model, in] writes along the direction, relative to its norm."""
    weight = STORED.values([tensors[name], tensors[name + SCALES]]).double()
    return float((_row(weight.shape[0]).double() @ weight).norm() / weight.norm())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Ministral 3 in FP8 and its edit."""
    place = tmp_path_factory.mktemp("fp8-tensor")
    save_fp8_tensor(place / "base", sharded=True)
    _edit(place / "base", place / "edited")
    return place / "base", place / "edited"


def test_no_writer_keeps_anything_along_r_and_verify_says_so(pair: tuple[Path, Path]) -> None:
    base, edited = (tensors_of(path) for path in pair)
    writers = [name for name, t in base.items() if t.dtype == FP8 and name.endswith(("o_proj.weight", "down_proj.weight"))]
    assert len(writers) == 4
    for name in writers:
        assert edited[name].dtype == FP8 and edited[name + SCALES].shape == ()
        assert _left(edited, name) <= 1e-3 < 1e-2 < _left(base, name)
    assert verify(open_folder(pair[1]), open_folder(pair[0])) == (5, len(base))


def test_what_is_not_a_writer_keeps_its_bytes_and_so_do_scales_of_inputs(pair: tuple[Path, Path]) -> None:
    base, edited = (tensors_of(path) for path in pair)
    changed = {name for name, t in base.items() if _bytes(t) != _bytes(edited[name])}
    assert {name.removesuffix(SCALES) for name in changed} == {
        "model.embed_tokens.weight", *(f"model.layers.{i}.{w}.weight" for i in range(2) for w in ("self_attn.o_proj", "mlp.down_proj"))
    }  # fmt: skip
    assert any(name.endswith(INPUTS) for name in base) and base.keys() == edited.keys()


def test_transformers_loads_the_values_that_are_read_here(pair: tuple[Path, Path]) -> None:
    for path in pair:
        folder, tensors = open_folder(path), tensors_of(path)
        assert folder.stored == STORED and check_agreement(folder, open_index(path)) == []
        model, info = from_pretrained(folder, torch.float32)
        assert not info["missing_keys"] and not info["mismatched_keys"]
        loaded = model.state_dict()
        for name in [name for name in tensors if name + SCALES in tensors]:
            torch.testing.assert_close(loaded[name], STORED.values([tensors[name], tensors[name + SCALES]]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [torch.ones(2), torch.ones(2, 2), torch.tensor(1, dtype=torch.int32), None])
def test_a_scale_that_is_not_one_number_is_refused(scale: torch.Tensor | None, tmp_path: Path) -> None:
    base = save_fp8_tensor(tmp_path / "base")
    tensors = tensors_of(base)
    del tensors[DOWN + SCALES]
    store(base, tensors if scale is None else tensors | {DOWN + SCALES: scale})
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.down_proj\.weight"):
        _edit(base, tmp_path / "edited")
    assert not (tmp_path / "edited").exists()


def _stored(wide: torch.Tensor, scale: float) -> list[torch.Tensor]:
    return [round_nearest(wide / scale, FP8), torch.tensor(scale)]


@pytest.mark.parametrize("d_model", [128, 4096])
def test_the_scale_stays_where_the_edit_fits_it_and_values_stay_on_their_grid(d_model: int) -> None:
    row, parts = _row(d_model), _stored(_random(2, d_model, 64), 6.0 / LARGEST)
    old = STORED.values(parts)
    cost = STORED.rewrite(parts, lambda wide: wide.sub_(row.T @ (row @ wide)), row, "w")
    exact, new = old - row.T @ (row @ old), STORED.values(parts)
    assert float(parts[1]) == pytest.approx(6.0 / LARGEST)
    assert float((row @ new).norm()) < 1e-3 * float(old.norm())
    assert cost.nearest <= cost.stored < 0.05
    assert cost.stored == pytest.approx(float((new - exact).norm() / exact.norm()), rel=1e-3)


def test_the_scale_grows_where_a_value_would_not_fit() -> None:
    parts = _stored(_random(3, 64, 8), 6.0 / LARGEST)
    STORED.rewrite(parts, lambda wide: wide.mul_(10), torch.zeros(1, 64), "w")
    new = STORED.values(parts)
    assert float(parts[0].float().abs().max()) == LARGEST and float(new.abs().max()) > 12.0


def test_a_matrix_of_zeros_stays_one() -> None:
    parts = [torch.zeros(8, 4).to(FP8), torch.tensor(0.0)]
    STORED.rewrite(parts, lambda wide: None, _row(8), "w")
    assert not STORED.values(parts).any() and float(parts[1]) == 1.0


@pytest.mark.parametrize("settings", [{"quant_method": "fp8"}, {"quant_method": "fp8", "weight_block_size": [128, 128]}, {}])
def test_only_a_config_that_says_no_blocks_is_of_this_format(settings: dict[str, object]) -> None:
    assert STORED.of_config(settings) is None
    assert STORED.of_config({"quant_method": "fp8", "weight_block_size": None}) == STORED
