"""From the old shards to the new ones: what isn't edited is copied byte for byte, what is is rounded once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from abliterate.checkpoint.orthogonalise import component_along, orthogonalise
from abliterate.checkpoint.output import plan_output
from abliterate.checkpoint.stream import Before, edited, write_shards
from abliterate.checkpoint.tasks import EditTask
from abliterate.checkpoint.write import new_folder
from abliterate.errors import InputError
from abliterate.model.formats import fp8
from abliterate.model.index import SINGLE, ShardIndex, open_index
from abliterate.model.removal import removal

ROW = torch.tensor([[0.6, 0.8, 0.0, 0.0]])


def _task(name: str, rows: torch.Tensor | None = None, strength: float = 1.0, axis: int = 0, **more: Any) -> EditTask:
    return EditTask(name, "mlp", axis, removal(torch.eye(1, 4) if rows is None else rows), strength, **more)


def _checkpoint(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    save_file(tensors, folder / SINGLE)
    return folder


def _write(
    source: Path | ShardIndex,
    tasks: list[EditTask],
    out: Path,
    advance: Callable[[int], None] = lambda done: None,
    untied: tuple[str, str] | None = None,
) -> dict[str, Before]:
    index = source if isinstance(source, ShardIndex) else open_index(source)
    named = {task.name: task for task in tasks}
    out.mkdir(exist_ok=True)
    return write_shards(index, plan_output(index, named, untied), named, out, advance)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_only_the_bytes_of_edited_tensors_differ(tmp_path: Path) -> None:
    source = _checkpoint(tmp_path / "model", a=_random(4, 3), b=_random(4, 3), c=torch.arange(5))
    index = open_index(source)
    _write(index, [_task("b")], tmp_path / "out")
    old, new = (source / SINGLE).read_bytes(), (tmp_path / "out" / SINGLE).read_bytes()
    start, end = index.tensors["b"].start, index.tensors["b"].end
    assert old[:start] == new[:start] and old[end:] == new[end:]
    assert old[start:end] != new[start:end]
    assert not load_file(tmp_path / "out" / SINGLE)["b"][0].any()


@pytest.mark.parametrize("shards", [None, "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_tasks_every_file_is_the_sources_byte_for_byte(
    tiny: Callable[..., Path], tmp_path: Path, shards: str | None, dtype: torch.dtype
) -> None:
    source = tiny(shards=shards, dtype=dtype)
    assert _write(source, [], tmp_path / "out") == {}
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert written == {path.name: path.read_bytes() for path in source.glob("*.safetensors")}


def test_tensors_without_elements_are_kept(tmp_path: Path) -> None:
    source = _checkpoint(tmp_path / "model", a=torch.empty(0, 3), b=_random(4, 3), c=torch.empty(0))
    _write(source, [_task("b")], tmp_path / "out")
    written = load_file(tmp_path / "out" / SINGLE)
    assert written["a"].shape == (0, 3) and written["c"].shape == (0,) and not written["b"][0].any()


@pytest.mark.parametrize("untied", [None, ("b", "head")])
def test_advance_hears_of_every_byte_once(tmp_path: Path, untied: tuple[str, str] | None) -> None:
    source = _checkpoint(tmp_path / "model", a=_random(4, 3), b=_random(4, 3))
    heard: list[int] = []
    _write(source, [_task("b")], tmp_path / "out", heard.append, untied)
    assert sum(heard) == (tmp_path / "out" / SINGLE).stat().st_size


def test_an_untied_head_gets_the_old_bytes_of_an_edited_embedding(tmp_path: Path) -> None:
    source = _checkpoint(tmp_path / "model", a=_random(6, 4), b=_random(4, 3))
    _write(source, [_task("a", axis=1), _task("b")], tmp_path / "out", untied=("a", "head"))
    old, new = load_file(source / SINGLE), load_file(tmp_path / "out" / SINGLE)
    assert torch.equal(new["head"], old["a"])
    assert not new["a"][:, 0].any() and torch.equal(new["a"][:, 1:], old["a"][:, 1:])


def test_fp8_values_and_scales_are_written_together_even_in_two_shards(tmp_path: Path) -> None:
    weight, scales = fp8.requantise(_random(64, 40), torch.zeros(0, 64), (32, 32), torch.float32)
    source, names = tmp_path / "model", {"w": "1.safetensors", "w_scale_inv": "2.safetensors", "v": "2.safetensors"}
    source.mkdir()
    save_file({"w": weight}, source / "1.safetensors")
    save_file({"w_scale_inv": scales, "v": _random(3)}, source / "2.safetensors")
    (source / "model.safetensors.index.json").write_text('{"weight_map": ' + str(names).replace("'", '"') + "}")
    rows = torch.linalg.qr(_random(64, 1, seed=2)).Q.T.contiguous()
    heard: list[int] = []
    before = _write(source, [_task("w", rows, stored=fp8.BlockFp8((32, 32)))], tmp_path / "out", heard.append)
    new = load_file(tmp_path / "out" / "1.safetensors") | load_file(tmp_path / "out" / "2.safetensors")
    old = fp8.dequantise(weight, scales, (32, 32))
    wide = fp8.dequantise(new["w"], new["w_scale_inv"], (32, 32))
    assert component_along(wide, rows, 0) < 1e-3 * float(old.norm()) < component_along(old, rows, 0)
    assert sum(heard) == open_index(source).nbytes and torch.equal(new["v"], _random(3))
    assert before["w"].rounding is not None and before["w"].plain_rounding is not None
    assert before["w"].component == pytest.approx(component_along(old, rows, 0), rel=1e-5)


def test_what_an_edited_tensor_was_is_measured_before_the_edit(tmp_path: Path) -> None:
    weight = _random(4, 3)
    found = _write(_checkpoint(tmp_path / "model", a=weight), [_task("a", ROW, 0.25)], tmp_path / "out")["a"]
    assert found.component == pytest.approx(float((ROW @ weight).norm()), rel=1e-5)
    assert found.aim == pytest.approx(0.75 * found.component, rel=1e-6)
    assert found.size == pytest.approx(float(weight.norm()), rel=1e-6)
    assert found.blake3 == blake3(weight.numpy().tobytes()).hexdigest()
    assert found.rounding is None and found.plain_rounding is None


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_the_aim_of_an_edit_that_keeps_norms_is_lengthened_with_its_columns(tmp_path: Path, strength: float) -> None:
    weight = _random(4, 3)
    source = _checkpoint(tmp_path / "model", a=weight)
    found = _write(source, [_task("a", ROW, strength, keep_norms=True)], tmp_path / "out")["a"]
    edited = load_file(tmp_path / "out" / SINGLE)["a"]
    torch.testing.assert_close(edited.norm(dim=0), weight.norm(dim=0))
    assert found.aim == pytest.approx(component_along(edited, ROW, 0), abs=1e-6)


# The file systems' ways to say that they can't copy ranges, and a system without the call.
@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, None])
def test_where_ranges_cant_be_copied_bytes_go_through_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    source = _checkpoint(tmp_path / "model", a=_random(40, 30), b=torch.arange(500))

    def unable(*args: Any) -> int:
        raise OSError(number, "unable")

    if number is None:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", unable, raising=False)
    heard: list[int] = []
    _write(source, [], tmp_path / "out", heard.append)
    assert (tmp_path / "out" / SINGLE).read_bytes() == (source / SINGLE).read_bytes()
    assert sum(heard) == (source / SINGLE).stat().st_size


def test_another_error_of_the_copy_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> int:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "copy_file_range", broken, raising=False)
    with pytest.raises(OSError, match="broken disk"):
        _write(_checkpoint(tmp_path / "model", a=_random(4, 3)), [], tmp_path / "out")


@pytest.mark.parametrize("piece", [1, 7, 4096])
@pytest.mark.parametrize("in_memory", [False, True])
def test_short_copies_and_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, in_memory: bool) -> None:
    source = _checkpoint(tmp_path / "model", a=_random(4, 3), b=_random(4, 3))
    copy, write = getattr(os, "copy_file_range", None), os.pwrite
    if in_memory or copy is None:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", lambda s, t, count, *at: copy(s, t, min(count, 5), *at))
    monkeypatch.setattr(os, "pwrite", lambda target, data, at: write(target, data[:5], at))
    monkeypatch.setattr("abliterate.checkpoint.stream._PIECE", piece)
    _write(source, [_task("b")], tmp_path / "out")
    monkeypatch.undo()
    _write(source, [_task("b")], tmp_path / "again")
    assert (tmp_path / "out" / SINGLE).read_bytes() == (tmp_path / "again" / SINGLE).read_bytes()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["copy_file_range", "pwrite"])
def test_a_disk_that_fills_up_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str) -> None:
    source = _checkpoint(tmp_path / "model", a=torch.ones(4, 3), b=torch.ones(4, 3), c=torch.ones(4, 3), d=torch.ones(4, 3))
    calls, real = iter(range(100)), getattr(os, call)

    def full(*args: Any) -> int:
        if next(calls) >= 1:
            raise OSError(number, "full")
        return int(real(*args))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match="no space left"), new_folder(tmp_path / "out", 1) as partial:
        _write(source, [_task("b"), _task("d")], partial)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("change", [_append, _replace, lambda path: os.utime(path, ns=(1, 1))], ids=["longer", "another file", "touched"])
def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    source = _checkpoint(tmp_path / "model", a=_random(4, 3), b=_random(4, 3))
    steps = iter([change])

    def advance(done: int) -> None:
        next(steps, lambda path: None)(source / SINGLE)

    with pytest.raises(InputError, match="changed while it was read"):
        _write(source, [_task("b")], tmp_path / "out", advance)


def test_a_source_that_changed_since_its_headers_were_read_is_refused(tmp_path: Path) -> None:
    source = _checkpoint(tmp_path / "model", a=_random(4, 3), b=_random(4, 3))
    index = open_index(source)
    save_file({"a": _random(4, 3, seed=1), "b": _random(4, 3)}, source / SINGLE)
    with pytest.raises(InputError, match="changed while it was read"):
        _write(index, [_task("b")], tmp_path / "out")


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(("tasks", "says"), [([], "became shorter"), ([_task("a")], "ends inside a")], ids=["copied", "edited"])
def test_a_source_that_ends_early_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool, tasks: list[EditTask], says: str
) -> None:
    source = _checkpoint(tmp_path / "model", a=_random(4, 3), b=_random(4, 3))
    if in_memory:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    index = open_index(source)
    os.truncate(source / SINGLE, index.tensors["a"].start + 4)
    with pytest.raises(InputError, match=says):
        _write(index, tasks, tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    index = open_index(_checkpoint(tmp_path / "model", a=torch.full((4, 3), value)))
    with pytest.raises(InputError, match="a holds NaN"):
        edited(index, _task("a"))


@pytest.mark.parametrize("keep_norms", [False, True])
def test_a_tensor_that_leaves_its_range_is_named(tmp_path: Path, keep_norms: bool) -> None:
    row = torch.tensor([[-0.1, 0.57, 0.57, 0.57]])
    weight = torch.full((4, 1), 65504.0)
    if keep_norms:  # what is left of a column gets all its length
        row, weight = torch.tensor([[0.0, 1.0, 0.0, 0.0]]), weight * torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    index = open_index(_checkpoint(tmp_path / "model", a=weight.half()))
    with pytest.raises(InputError, match="a exceeds the range of F16"):
        edited(index, _task("a", row / row.norm(), keep_norms=keep_norms))


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    weight = _random(4, 3).bfloat16()
    index = open_index(_checkpoint(tmp_path / "model", a=weight))
    exact = weight.double() - ROW.double().T @ (ROW.double() @ weight.double())
    made = edited(index, _task("a", ROW))[1]["a"]
    assert ((made.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()
    assert torch.equal(made, orthogonalise(weight, ROW, 1.0, 0).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_tensor_keeps_its_stored_type(tmp_path: Path, dtype: torch.dtype) -> None:
    index = open_index(_checkpoint(tmp_path / "model", a=torch.ones(4, 3, dtype=dtype)))
    assert edited(index, _task("a"))[1]["a"].dtype == dtype


def test_a_file_that_is_there_already_is_not_overwritten(tmp_path: Path) -> None:
    source = _checkpoint(tmp_path / "model", a=_random(4, 3))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SINGLE).write_text("mine")
    with pytest.raises(FileExistsError):
        _write(source, [], tmp_path / "out")
    assert (tmp_path / "out" / SINGLE).read_text() == "mine"
