"""The shard index: what it reads, and that a stranger's file can only be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from abliterate.errors import InputError
from abliterate.model.index import INDEX, SINGLE, open_index, read_header

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "nonsense"]) | JSON,
        "shape": st.lists(st.integers(-2, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-4, 70), min_size=2, max_size=2) | JSON,
    }
)


def write_raw(path: Path, header: Any, data: bytes = b"") -> Path:
    """A file in the form of safetensors with whatever header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _refused_or_read(read: Callable[[], Any]) -> None:
    try:
        read()
    except InputError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("shards", [None, "20KB"])
def test_every_tensor_reads_as_safetensors_reads_it(tiny: Callable[..., Path], shards: str | None) -> None:
    folder = tiny(shards=shards, dtype=torch.bfloat16)
    index = open_index(folder)
    expected = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert index.tensors.keys() == expected.keys()
    assert all(torch.equal(index.read(name), tensor) for name, tensor in expected.items())


def test_nbytes_is_the_size_of_the_shards_on_disk(tiny: Callable[..., Path]) -> None:
    folder = tiny(shards="20KB")
    files = list(folder.glob("*.safetensors"))
    assert len(files) > 1
    assert open_index(folder).nbytes == sum(file.stat().st_size for file in files)


def test_a_scalar_and_an_empty_tensor_are_read(tmp_path: Path) -> None:
    save_file({"one": torch.tensor(3.0), "none": torch.empty(0, 4)}, tmp_path / SINGLE)
    index = open_index(tmp_path)
    assert float(index.read("one")) == 3.0
    assert index.read("none").shape == (0, 4)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200))
@example(content=b"")
@example(content=b"\xff" * 8)
@example(content=b"\x02" + b"\0" * 7 + b"[]")
@example(content=b"\x02" + b"\0" * 7 + b"{}")
def test_arbitrary_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.safetensors"
    path.write_bytes(content)
    _refused_or_read(lambda: read_header(path))


@settings(max_examples=200, deadline=None)
@given(header=JSON | st.dictionaries(st.text(max_size=5), ENTRY | JSON, max_size=3), data=st.binary(max_size=70))
@example(header={"a": {"dtype": [], "shape": [], "data_offsets": [0, 0]}}, data=b"")
@example(header={"a": {"dtype": {}, "shape": [1], "data_offsets": [0, 4]}}, data=b"1234")
@example(header={"a\nb": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, data=b"12345678")
def test_arbitrary_headers_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, header: Any, data: bytes) -> None:
    path = write_raw(tmp_path_factory.getbasetemp() / "header.safetensors", header, data)
    _refused_or_read(lambda: read_header(path))


@settings(max_examples=100, deadline=None)
@given(document=JSON | st.fixed_dictionaries({"weight_map": JSON | st.dictionaries(st.text(max_size=5), JSON, max_size=3)}))
def test_arbitrary_shard_indices_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "indexed"
    folder.mkdir(exist_ok=True)
    (folder / INDEX).write_text(json.dumps(document), encoding="utf-8")
    _refused_or_read(lambda: open_index(folder))


@pytest.mark.parametrize("nested", [b"[" * 200_000, b'{"a":' * 100_000])
def test_a_deeply_nested_header_is_refused(tmp_path: Path, nested: bytes) -> None:
    with pytest.raises(InputError, match="header is not JSON"):
        read_header(write_raw(tmp_path / SINGLE, nested))


def test_a_deeply_nested_shard_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(b"[" * 200_000)
    with pytest.raises(InputError, match="not a shard index"):
        open_index(tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, b"123456", "overlap"),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234", "overlap"),
        ({"a": entry([1], 4, 8)}, b"12345678", "overlap or leave gaps"),
        ({"a": entry([1000], 0, 4000)}, b"1234", "truncated"),
        ({"a": entry([10**30], 0, 4 * 10**30)}, b"1234", "malformed"),
        ({"a": entry([1], 0, 4)}, b"12345", "after the last tensor"),
        ({"a": entry([2], 0, 4)}, b"1234", "needs 8"),
        ({"a": entry([1], 4, 0)}, b"1234", "-4 bytes"),
        ({"a": entry([-1], 0, 4)}, b"1234", "malformed"),
        ({"a": {**entry([1], 0, 4), "shape": [True]}}, b"1234", "malformed"),
        ({"a": {**entry([1], 0, 4), "shape": [1.0]}}, b"1234", "malformed"),
        ({"a": {**entry([1], 0, 4), "data_offsets": [0]}}, b"1234", "malformed"),
        ({"a": entry([1], 0, 4, "F31")}, b"1234", "unknown type 'F31'"),
        ({"a": 5}, b"", "malformed"),
        ([], b"", "not JSON"),
    ],
)
def test_a_bad_header_is_refused_by_what_is_wrong(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_header(write_raw(tmp_path / SINGLE, header, data))


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_shard_is_refused(tiny: Callable[..., Path], kept: int) -> None:
    shard = tiny() / SINGLE
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(InputError, match="truncated"):
        open_index(shard.parent)


def test_a_shard_that_shrinks_after_the_headers_were_read_is_refused(tiny: Callable[..., Path]) -> None:
    folder = tiny()
    index = open_index(folder)
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-1])
    last = max(index.tensors.values(), key=lambda info: info.end)
    with pytest.raises(InputError, match="truncated"):
        index.read(last.name)


def test_a_missing_shard_is_named(tiny: Callable[..., Path]) -> None:
    folder = tiny(shards="20KB")
    missing = sorted(folder.glob("*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(InputError, match=missing.name):
        open_index(folder)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", "", "..", 7, None, "x\0.safetensors"]
)
def test_an_index_may_only_name_shards_beside_it(tmp_path: Path, name: Any) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    (tmp_path / "sub").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "sub" / "x.safetensors")
    (tmp_path / "sub" / INDEX).write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    with pytest.raises(InputError, match="names"):
        open_index(tmp_path / "sub")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for shard in ("x.safetensors", "y.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / shard)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}), encoding="utf-8")
    with pytest.raises(InputError, match=r"is in x\.safetensors too"):
        open_index(tmp_path)


def test_a_tensor_that_the_index_names_and_no_shard_holds_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}), encoding="utf-8")
    with pytest.raises(InputError, match="b"):
        open_index(tmp_path)


def test_beside_a_single_file_an_index_is_not_read_as_transformers_reads_none(tiny: Callable[..., Path]) -> None:
    folder = tiny()
    save_file({"stale": torch.ones(1)}, folder / "old.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"stale": "old.safetensors"}}), encoding="utf-8")
    try:
        assert "stale" not in open_index(folder).tensors
    except InputError as error:
        assert SINGLE in str(error) and INDEX in str(error)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_pickle_only_folder_is_refused_as_such(tmp_path: Path, pickle: str) -> None:
    (tmp_path / pickle).write_bytes(b"x")
    with pytest.raises(InputError, match="pickle"):
        open_index(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither"):
        open_index(tmp_path)
    with pytest.raises(InputError, match="no such model folder"):
        open_index(tmp_path / "absent")


def test_a_missing_tensor_and_an_unreadable_type_are_refused_on_reading(tmp_path: Path) -> None:
    write_raw(tmp_path / SINGLE, {"a": entry([1], 0, 8, "U64")}, b"12345678")
    index = open_index(tmp_path)
    with pytest.raises(InputError, match="U64"):
        index.read("a")
    with pytest.raises(InputError, match="no tensor b"):
        index.read("b")
