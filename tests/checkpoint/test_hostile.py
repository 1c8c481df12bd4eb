"""A checkpoint is a stranger's file on a disk that may fail: the edit is whole, or refused with one line and nothing left."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from abliterate.checkpoint import edit as editing
from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.output import UNTIED_SHARD
from abliterate.checkpoint.verify import verify
from abliterate.cli.main import main
from abliterate.errors import CheckError, InputError
from abliterate.model.edit import edit_from_direction
from abliterate.model.folder import open_folder
from abliterate.model.index import INDEX, SINGLE, open_index, read_header

Tiny = Callable[..., Path]
NAME = "model.layers.0.self_attn.o_proj.weight"


def _scripts(*names: str) -> list[ModuleType]:
    """Files of scripts/ as modules, which import each other."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.pop(0)


faults, bases, files, folders, judge = _scripts("faults", "fault_bases", "fault_bytes", "fault_folders", "fault_judge")


def _edit(model: Path, out: Path, advance: Callable[[int], None] = lambda done: None, **options: Any) -> None:
    folder = open_folder(model)
    r = torch.ones(folder.d_model)
    plan = edit_from_direction(r, folder.layers, tied=folder.tied, **options)
    edit_checkpoint(folder, plan, out, "base", lambda proof: "card\n", advance)


def _refused(model: Path, match: str, **options: Any) -> None:
    """The edit ends with one line, nothing stands under the name or beside it, and the source is what it was."""
    out, before = model.parent / "out", faults.contents(model.parent)
    with pytest.raises(InputError, match=match) as caught:
        _edit(model, out, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert faults.contents(model.parent) == before


def _entry(path: Path, name: str, **changes: Any) -> None:
    """Change a tensor's entry in a shard's header."""
    header, data = files.parts(path)
    files.put(path, [(n, entry | changes if n == name else entry) for n, entry in header], data)


def _shard_of(model: Path, name: str) -> Path:
    return model / open_index(model).tensors[name].shard


def _two_tensors(path: Path) -> tuple[list[tuple[str, Any]], bytes]:
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, path)
    header, data = files.parts(path)
    return header, data


# --- headers and indices ---


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = bases.llama(tmp_path_factory.mktemp("valid") / "model")
    return folder


SPLICES = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 12), st.binary(max_size=12)), min_size=1, max_size=4)


def _spliced(content: bytes, splices: list[tuple[int, int, bytes]], length: int) -> bytes:
    """``content`` with bytes among its first ``length`` replaced by others."""
    for start, count, new in splices:
        at = start % (length + 1)
        content = content[:at] + new + content[at + count :]
    return content


@settings(max_examples=200, deadline=None)
@given(splices=SPLICES, mend=st.booleans())
def test_a_damaged_header_is_refused_or_its_tensors_tile_the_file(valid: Path, splices: list[tuple[int, int, bytes]], mend: bool) -> None:
    content = min(valid.glob("*.safetensors")).read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = _spliced(content[8 : 8 + length], splices, length)
    path = valid.parent / "damaged.safetensors"
    path.write_bytes((len(text).to_bytes(8, "little") if mend else content[:8]) + text + content[8 + length :])
    try:
        found = read_header(path)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        return
    ends = [info.end for info in found]
    assert [info.start for info in found][1:] == ends[:-1] and ends[-1:] in ([], [path.stat().st_size])
    assert len({info.name for info in found}) == len(found)


@settings(max_examples=100, deadline=None)
@given(splices=SPLICES)
def test_a_damaged_index_is_refused_or_names_shards_beside_it(valid: Path, splices: list[tuple[int, int, bytes]]) -> None:
    content = (valid / INDEX).read_bytes()
    try:
        (valid / INDEX).write_bytes(_spliced(content, splices, len(content)))
        found = open_index(valid)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert {valid / shard for shard in found.shards} <= set(valid.glob("*.safetensors"))
    finally:
        (valid / INDEX).write_bytes(content)


def test_a_name_that_stands_twice_in_a_header_is_refused(tmp_path: Path) -> None:
    header, data = _two_tensors(tmp_path / SINGLE)
    files.put(tmp_path / SINGLE, [*header, header[-1]], data)
    with pytest.raises(InputError, match="twice"):
        read_header(tmp_path / SINGLE)


def test_a_name_that_stands_twice_in_an_index_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "../y.safetensors", "a": "x.safetensors"}}')
    with pytest.raises(InputError, match="'a' is in it twice"):
        open_index(tmp_path)


@pytest.mark.parametrize("name", ["a\nb", "\ud800", "\0", "\x1b[2J", "x" * 5000, "model.layers." + "9" * 5000 + ".mlp.down_proj.weight"])
def test_a_name_that_cannot_be_shown_is_refused(tmp_path: Path, name: str) -> None:
    header, data = _two_tensors(tmp_path / SINGLE)
    files.put(tmp_path / SINGLE, [(name if n == "a" else n, entry) for n, entry in header], data)
    with pytest.raises(InputError, match="is not a valid tensor name") as caught:
        read_header(tmp_path / SINGLE)
    assert len(str(caught.value)) < 300 and str(caught.value).removeprefix(str(tmp_path)).isprintable()


@pytest.mark.parametrize("name", ["a\nb.safetensors", "\ud800.safetensors", "x" * 300 + ".safetensors", "\0.safetensors"])
def test_a_shard_whose_name_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match="names the shard") as caught:
        open_index(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("shape", [[0, 2**62, 2**62], [0, 10**30], [1] * 100, [2] * 100_000])
def test_a_shape_that_no_tensor_can_have_is_refused(tmp_path: Path, shape: list[int]) -> None:
    header, _ = _two_tensors(tmp_path / SINGLE)
    files.put(tmp_path / SINGLE, [("a", header[-1][1] | {"shape": shape, "data_offsets": [0, 0]})], b"")
    with pytest.raises(InputError, match=r"malformed|can't have the shape"):
        read_header(tmp_path / SINGLE)


@pytest.mark.parametrize("metadata", [[], 7, "x", {"format": 7}, {"format": None}, {"a": {"b": []}}])
def test_metadata_that_are_not_text_are_refused(tmp_path: Path, metadata: Any) -> None:
    header, data = _two_tensors(tmp_path / SINGLE)
    files.put(tmp_path / SINGLE, [("__metadata__", metadata), *header], data)
    if not metadata:
        assert len(read_header(tmp_path / SINGLE)) == 2
        return
    with pytest.raises(InputError, match="header"):
        read_header(tmp_path / SINGLE)


def test_a_header_of_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / SINGLE).open("wb") as file:
        file.write((2**31).to_bytes(8, "little") + b"{")
        file.truncate(2**31 + 100)  # a hole: it takes no space
    with pytest.raises(InputError, match="header"):
        read_header(tmp_path / SINGLE)


def test_an_index_of_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(InputError, match="too large"):
        open_index(tmp_path)


# --- what an edit does with them ---


@pytest.mark.parametrize("absolute", [False, True])
def test_an_index_that_points_out_of_the_folder_is_refused(tiny: Tiny, tmp_path: Path, absolute: bool) -> None:
    model, outside = tiny(shards="20KB"), tmp_path / "secret.safetensors"
    document = json.loads((model / INDEX).read_text())
    shard = document["weight_map"][NAME]
    shutil.copy(model / shard, outside)
    name = str(outside) if absolute else f"../{outside.name}"
    document["weight_map"] = {n: name if s == shard else s for n, s in document["weight_map"].items()}
    (model / INDEX).write_text(json.dumps(document))
    _refused(model, "must be .safetensors files beside it")


@pytest.mark.parametrize("offsets", [[0, 2048], [-2, 2046], [2**62, 2**62 + 2048], [2**31, 2**31 + 2048]])
def test_offsets_that_overlap_or_leave_the_file_are_refused(tiny: Tiny, offsets: list[int]) -> None:
    model = tiny(shards="20KB", dtype=torch.bfloat16)
    _entry(_shard_of(model, "model.layers.3.self_attn.o_proj.weight"), "model.layers.3.self_attn.o_proj.weight", data_offsets=offsets)
    _refused(model, r"overlap|malformed|truncated")


@pytest.mark.parametrize("value", [b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"])
def test_nan_or_infinity_in_an_edited_tensor_is_refused(tiny: Tiny, value: bytes) -> None:
    model = tiny(shards="20KB", dtype=torch.bfloat16)
    info = open_index(model).tensors[NAME]
    content = (model / info.shard).read_bytes()
    (model / info.shard).write_bytes(content[: info.start + 20] + value + content[info.start + 22 :])
    _refused(model, f"{NAME} holds NaN")


def test_huge_numbers_in_float64_are_refused(tiny: Tiny) -> None:
    model = tiny(dtype=torch.float64)
    info = open_index(model).tensors[NAME]
    content = (model / info.shard).read_bytes()
    (model / info.shard).write_bytes(
        content[: info.end - 8] + torch.tensor(1e300, dtype=torch.float64).numpy().tobytes() + content[info.end :]
    )
    _refused(model, f"{NAME} holds NaN or infinite")


def test_a_bias_without_an_axis_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(attention_bias=True)
    name = "model.layers.0.self_attn.o_proj.bias"
    header, data = files.parts(model / SINGLE)
    whole = open_index(model).tensors[name]
    start = whole.start - (model / SINGLE).stat().st_size + len(data)
    cut = whole.nbytes - 4
    for n, entry in header:
        if n == name:
            entry.update(shape=[], data_offsets=[start, start + 4])
        elif n != "__metadata__" and entry["data_offsets"][0] > start:
            entry["data_offsets"] = [at - cut for at in entry["data_offsets"]]
    files.put(model / SINGLE, header, data[: start + 4] + data[start + whole.nbytes :])
    _refused(model, r"o_proj\.bias has shape \[\]")


@pytest.mark.parametrize("shape", [[16, 2], [1, 32]])
def test_a_norm_of_another_shape_behind_a_writer_is_refused(tmp_path: Path, shape: list[int]) -> None:
    model, name = bases.gemma2(tmp_path / "model"), "model.layers.1.post_attention_layernorm.weight"
    _entry(_shard_of(model, name), name, shape=shape)
    _refused(model, r"post_attention_layernorm\.weight has shape")


def test_a_norm_that_is_not_finite_behind_a_writer_is_refused(tmp_path: Path) -> None:
    model, name = bases.gemma2(tmp_path / "model"), "model.layers.1.post_attention_layernorm.weight"
    info = open_index(model).tensors[name]
    content = (model / info.shard).read_bytes()
    (model / info.shard).write_bytes(content[: info.start] + b"\x80\x7f" + content[info.start + 2 :])
    _refused(model, r"post_attention_layernorm\.weight holds NaN")


@pytest.mark.parametrize(("dtype", "shape"), [("F32", [1, 8]), ("F32", [8]), ("I32", [2, 4]), ("F32", [2, 4, 1])])
def test_scales_of_another_shape_or_type_are_refused(tmp_path: Path, dtype: str, shape: list[int]) -> None:
    model, name = bases.qwen3_fp8(tmp_path / "model"), "model.layers.1.self_attn.o_proj.weight_scale_inv"
    _entry(_shard_of(model, name), name, dtype=dtype, shape=shape)
    _refused(model, r"o_proj\.weight_scale_inv is")


def test_packed_experts_of_another_shape_beside_a_writer_are_refused(tmp_path: Path) -> None:
    model, name = bases.gpt_oss(tmp_path / "model"), "model.layers.0.mlp.experts.gate_up_proj_blocks"
    count = open_index(model).tensors[name].nbytes
    _entry(_shard_of(model, name), name, shape=[count])
    _refused(model, "gate_up_proj_blocks has shape")


@pytest.mark.parametrize("metadata", [7, [], "x", None])
def test_an_index_with_odd_metadata_can_be_untied(tmp_path: Path, metadata: Any) -> None:
    model = bases.qwen2(tmp_path / "model")
    (model / INDEX).write_text(json.dumps(json.loads((model / INDEX).read_text()) | {"metadata": metadata}))
    _edit(model, tmp_path / "out", policy="untie")
    verify(open_folder(tmp_path / "out"), open_folder(model))


def test_a_proof_beside_experts_that_are_still_packed_is_not_believed(tmp_path: Path) -> None:
    model = bases.gpt_oss(tmp_path / "model")
    _edit(model, tmp_path / "out")
    for name in ("abliteration.json", "abliteration.plan"):
        shutil.copy(tmp_path / "out" / name, model)
    with pytest.raises(CheckError, match="still packed"):
        verify(open_folder(model), None)


def test_a_shard_where_the_untied_head_would_go_is_refused(tmp_path: Path) -> None:
    model = bases.qwen2(tmp_path / "model")
    document = json.loads((model / INDEX).read_text())
    old = min(document["weight_map"].values())
    document["weight_map"] = {n: UNTIED_SHARD if s == old else s for n, s in document["weight_map"].items()}
    (model / old).rename(model / UNTIED_SHARD)
    (model / INDEX).write_text(json.dumps(document))
    _refused(model, "exists already", policy="untie")


# --- links ---


@pytest.mark.parametrize("name", [SINGLE, "config.json", "LICENSE", "sub/x.txt"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_out_of_the_folder_is_refused(tiny: Tiny, tmp_path: Path, name: str, relative: bool) -> None:
    model, outside = tiny(), tmp_path / "outside"
    outside.mkdir()
    link, target = model / name, outside / "target"
    link.parent.mkdir(exist_ok=True)
    link.rename(target) if link.exists() else target.write_text("secret")
    link.symlink_to(os.path.relpath(target, link.parent) if relative else target)
    _refused(model, "is a link out of the model's folder")


def test_an_index_behind_a_link_out_of_the_folder_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(shards="20KB")
    (model / INDEX).rename(tmp_path / "index")
    (model / INDEX).symlink_to(tmp_path / "index")
    _refused(model, "is a link out of the model's folder")


def test_links_within_the_folder_and_to_the_folder_are_followed(tiny: Tiny, tmp_path: Path) -> None:
    tiny().rename(tmp_path / "real")
    (tmp_path / "real" / SINGLE).rename(tmp_path / "real" / "weights.dat")
    (tmp_path / "real" / SINGLE).symlink_to("weights.dat")
    (tmp_path / "model").symlink_to(tmp_path / "real")
    _edit(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out" / SINGLE).is_symlink()
    verify(open_folder(tmp_path / "out"), open_folder(tmp_path / "model"))


def _as_snapshot(model: Path, repository: Path) -> Path:
    """The same model as the Hub's cache keeps it."""
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    blobs.mkdir(parents=True)
    for path in [p for p in sorted(model.rglob("*")) if p.is_file()]:
        name = path.relative_to(model)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / f"{name.name}-{len(name.parts)}"
        shutil.copy(path, blob)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return snapshot


def test_a_snapshot_of_the_hubs_cache_is_edited(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(shards="20KB")
    (model / "original").mkdir()
    (model / "original" / "params.json").write_text("{}")
    snapshot = _as_snapshot(model, tmp_path / "models--a--b")
    _edit(snapshot, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    verify(open_folder(tmp_path / "out"), open_folder(snapshot))


def test_a_link_from_a_snapshot_to_elsewhere_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    snapshot = _as_snapshot(tiny(), tmp_path / "models--a--b")
    (tmp_path / "models--c--d" / "blobs").mkdir(parents=True)
    (tmp_path / "models--c--d" / "blobs" / "x").write_text("x")
    (snapshot / "x.txt").symlink_to("../../../models--c--d/blobs/x")
    with pytest.raises(InputError, match="is a link out of the model's folder"):
        open_index(snapshot)


def test_blobs_beside_any_other_folder_are_not_the_hubs(tiny: Tiny, tmp_path: Path) -> None:
    snapshot = _as_snapshot(tiny(), tmp_path / "models--a--b")
    snapshot.parent.rename(snapshot.parent.with_name("checkpoints"))
    with pytest.raises(InputError, match="is a link out of the model's folder"):
        open_index(tmp_path / "models--a--b" / "checkpoints" / snapshot.name)


# --- a source that changes ---


def _appended(shard: Path) -> None:
    with shard.open("ab") as file:
        file.write(b"more")


def _cut(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 2)


def _replaced(shard: Path) -> None:
    shutil.copy2(shard, shard.with_suffix(".new"))
    shard.with_suffix(".new").replace(shard)


def _rewritten(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes())
    os.utime(shard, ns=(0, 0))


@pytest.mark.parametrize("change", [_appended, _cut, _replaced, _rewritten, Path.unlink])
@pytest.mark.parametrize("when", [0, 5])
def test_a_source_that_changes_while_it_is_read_is_refused(tiny: Tiny, tmp_path: Path, change: Callable[[Path], None], when: int) -> None:
    model, calls = tiny(shards="20KB"), iter(range(1000))

    def advance(done: int) -> None:
        if next(calls) == when:
            change(max(model.glob("*.safetensors")))

    with pytest.raises(InputError) as caught:
        _edit(model, tmp_path / "out", advance)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == [model]


def test_a_source_that_changes_after_its_headers_were_read_is_refused(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, check = tiny(), editing.self_check

    def slow_check(*given: Any) -> Any:
        _rewritten(model / SINGLE)
        return check(*given)

    monkeypatch.setattr(editing, "self_check", slow_check)
    with pytest.raises(InputError, match="changed while it was read"):
        _edit(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [model]


# --- disks that are full or fail ---


class Disk:
    """A disk on which one call of the system goes wrong."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, names: tuple[str, ...]) -> None:
        self.calls, self.fails_at = 0, -1
        for name in names:
            patch.setattr(os, name, self._failing(getattr(os, name), number))

    def _failing(self, real: Callable[..., Any], number: int) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            self.calls += 1
            if self.calls == self.fails_at:
                raise OSError(number, os.strerror(number))
            return real(*given)

        return call


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left"), (errno.EIO, "Input/output error")]
)
def test_wherever_a_write_fails_nothing_is_left(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    model = tiny(layers=2)
    disk = Disk(monkeypatch, number, ("pwrite", "copy_file_range", "fsync"))
    _edit(model, tmp_path / "first")  # the self-check writes too, and is kept
    disk.calls = 0
    _edit(model, tmp_path / "second")
    writes = disk.calls
    assert writes > 10
    for place in range(1, writes + 1):
        disk.calls, disk.fails_at = 0, place
        _refused(model, says)


def test_a_file_system_that_cannot_sync_folders_will_do(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def files_only(target: int) -> None:
        if stat.S_ISDIR(os.fstat(target).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(target)

    model = tiny()
    monkeypatch.setattr(os, "fsync", files_only)
    _edit(model, tmp_path / "out")
    verify(open_folder(tmp_path / "out"), open_folder(model))


def test_a_disk_that_is_full_for_the_plan_is_said_as_such(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    model = tiny()
    monkeypatch.setattr(editing, "save_edit", full)
    _refused(model, "No space left")


class BadSector:
    """A file of which nothing after the header can be read."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> BadSector:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def readinto(self, buffer: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_read_error_gives_one_line_and_nothing_under_the_name(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, real = tiny(), Path.open
    _edit(model, tmp_path / "first")
    save_file({"direction": torch.ones(32)}, tmp_path / "r.safetensors")
    before = faults.contents(tmp_path)
    monkeypatch.setattr(Path, "open", lambda self, *given, **named: BadSector(real(self, *given, **named)))
    capsys.readouterr()
    command = ["edit", "--model", str(model), "--direction", str(tmp_path / "r.safetensors"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("abliterate: ")]
    assert len(lines) == 1 and str(model / SINGLE) in lines[0] and "Input/output error" in lines[0]
    monkeypatch.undo()
    assert faults.contents(tmp_path) == before


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="the file that fails is Linux's")
def test_a_file_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(InputError, match="Input/output error"):
        read_header(Path("/proc/self/mem"))


# --- a small part of scripts/faults ---


def test_a_killed_edit_leaves_a_whole_checkpoint_or_none(tmp_path: Path) -> None:
    tally = faults.kills(15, 1, tmp_path, say=lambda line: None)
    assert tally.broken == []
    assert sum(count for (kind, _), count in tally.counts.items() if kind == "kill") == 15


def test_a_damaged_checkpoint_is_edited_whole_or_refused(tmp_path: Path) -> None:
    of_bytes = [kind for kind in files.DAMAGES if kind not in folders.WHOLE]
    tally = faults.fuzz(150, 1, tmp_path, say=lambda line: None, kinds=of_bytes)
    assert tally.broken == []
    assert sum(tally.counts.values()) == 150


def test_a_checkpoint_whose_parts_disagree_is_refused_or_measured_and_edited_as_it_is(tmp_path: Path) -> None:
    tally = faults.fuzz(96, 3, tmp_path, say=lambda line: None, kinds=sorted(folders.WHOLE))
    assert tally.broken == []
    assert {kind for kind, _ in tally.counts} == folders.WHOLE and sum(tally.counts.values()) == 96


def test_what_is_right_is_told_from_what_is_wrong(tmp_path: Path) -> None:
    """The trials rely on it."""
    model, out, r = bases.gemma2(tmp_path / "model"), tmp_path / "out", faults.direction(32)
    faults.edit(model, out)
    assert judge.measured(model, "") == "measured right"
    judge.check_edited(model, out, r, {})
    with pytest.raises(judge.BrokenPromiseError, match="along r"):
        judge.check_edited(model, model, r, {})
    (out / "optimizer.pt").write_bytes(b"")
    with pytest.raises(judge.BrokenPromiseError, match="stands in the new checkpoint"):
        judge.check_edited(model, out, r, {})
    (out / "optimizer.pt").unlink()
    folders.store(out, {folders.HEAD: torch.zeros(48, 32)})
    folders.reconfigure(out, tie_word_embeddings=False)
    with pytest.raises(judge.BrokenPromiseError, match="the head is another one"):
        judge.check_edited(model, out, r, {})
    folders.reconfigure(out, vocab_size=47)
    with pytest.raises(judge.BrokenPromiseError, match="what was written makes no model"):
        judge.check_edited(model, out, r, {})


def test_a_checkpoint_that_verifies_is_told_from_one_that_does_not(tiny: Tiny, tmp_path: Path) -> None:
    """The trials rely on it."""
    model = tiny()
    _edit(model, tmp_path / "out")
    info = open_index(tmp_path / "out").tensors["model.norm.weight"]
    content = bytearray((tmp_path / "out" / SINGLE).read_bytes())
    content[info.start] ^= 1
    (tmp_path / "out" / SINGLE).write_bytes(content)
    with pytest.raises(CheckError):
        verify(open_folder(tmp_path / "out"), open_folder(model))
