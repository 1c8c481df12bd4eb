"""What a budget says, what is free, and how a model is held in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abliterate.compute import memory
from abliterate.compute.memory import Sizes, available, holding_of, holding_on_gpus, parse_budget, parse_size, sizes_of
from abliterate.errors import InputError
from abliterate.model.folder import open_folder
from abliterate.model.index import open_index

CPU = torch.device("cpu")
GIB = 1 << 30


@pytest.mark.parametrize(
    ("given", "nbytes"),
    [
        ("6GiB", 6 * GIB),
        ("6gib", 6 * GIB),
        ("1.5 GB", 1_500_000_000),
        ("500MB", 500_000_000),
        ("4194304", 4 << 20),
        ("2000k", 2_000_000),
        ("3072Ki", 3 << 20),
        ("1MiB", 1 << 20),
    ],
)
def test_a_size_is_read_as_it_is_written(given: str, nbytes: int) -> None:
    assert parse_size(given) == nbytes


@pytest.mark.parametrize("given", ["", "six", "6 apples", "-1GB", "0", "6iB", "GB", "1e9", "6GiB of it"])
def test_what_is_no_size_is_refused_in_one_line(given: str) -> None:
    with pytest.raises(InputError, match="not a size; write it like 6GiB"):
        parse_size(given)


@pytest.mark.parametrize("given", ["3", "0.5", "4096", "1023KiB", "16k"])
def test_a_size_that_lacks_its_unit_is_refused(given: str) -> None:
    with pytest.raises(InputError, match=rf"'{given}': that is \d+ bytes; give it with a unit, as in 6GiB"):
        parse_size(given)


def test_where_one_block_does_not_fit_it_is_said_what_it_needs_that_for_and_no_type_that_is_as_wide() -> None:
    sizes = Sizes(total=10**9, block=10**8, outside=0, head=0, widest=1000, largest=10**7)
    with pytest.raises(InputError, match=r"0\.63 for the program, 0\.25 to work in, 0\.41 for the model.*or --dtype bfloat16"):
        holding_of(sizes, "float32", CPU, 1 << 20)
    with pytest.raises(InputError, match=r"in bfloat16 \(.*\), but only 0\.00 are available; allow more$"):
        holding_of(sizes, "bfloat16", CPU, 1 << 20)
    with pytest.raises(InputError, match=r"GiB in bfloat16 \(0\.25 to work in"):
        holding_of(sizes, "bfloat16", torch.device("cuda"), 1 << 20)


def test_a_budget_may_be_one_for_each_device() -> None:
    both = "cpu=32GiB, cuda:0=20GiB"
    assert parse_budget(both, CPU) == 32 * GIB
    assert parse_budget(both, torch.device("cuda", 0)) == 20 * GIB
    assert parse_budget(both, torch.device("cuda", 1)) is None
    assert parse_budget("cuda=8GiB", torch.device("cuda", 1)) == 8 * GIB
    assert parse_budget("8GiB", torch.device("cuda", 1)) == parse_budget("8GiB", CPU) == 8 * GIB
    assert parse_budget(None, CPU) is None
    with pytest.raises(InputError):
        parse_budget("cpu=much", CPU)


def control_group(root: Path, controllers: str, files: dict[str, str], lines: str) -> int | None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "own").write_text(lines)
    return memory._cgroup_limit(root, root / "own")


def test_the_least_limit_of_the_control_groups_counts(tmp_path: Path) -> None:
    files = {"memory/a/memory.limit_in_bytes": "5000", "memory/a/b/memory.limit_in_bytes": "9000", "memory/memory.limit_in_bytes": "7000"}
    assert control_group(tmp_path / "1", "", files, "4:memory:/a/b\n3:cpuset:/c\n") == 5000
    assert control_group(tmp_path / "2", "", {"a/memory.max": "max\n", "a/b/memory.max": "4096\n"}, "0::/a/b\n") == 4096


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert control_group(tmp_path / "1", "", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, "4:memory:/\n") is None
    assert control_group(tmp_path / "2", "", {"a/memory.max": "max\n"}, "0::/a\n") is None
    assert memory._cgroup_limit(tmp_path, tmp_path / "absent") is None


def test_what_is_free_heeds_the_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    free = available(CPU)
    monkeypatch.setattr(memory, "_cgroup_limit", lambda: 3 * GIB)
    assert available(CPU) <= min(free * 1.5, 3 * GIB)


SEVEN = Sizes(total=7_600_000_000, block=233_000_000, outside=4000, head=545_000_000, widest=18944, largest=68_000_000)


def test_a_model_that_fits_is_held_whole_in_the_type_of_its_device() -> None:
    held = holding_of(SEVEN, "auto", CPU, 64 * GIB)
    assert held.whole and held.dtype == torch.float32
    assert not holding_of(SEVEN, "auto", CPU, 20 * GIB).whole


def test_a_model_that_does_not_fit_is_read_block_by_block_within_the_budget() -> None:
    for gib in (2, 3, 4, 8, 16):
        held = holding_of(SEVEN, "bfloat16", CPU, gib * GIB)
        assert (held.peak <= gib * GIB and not held.whole) or gib == 16


def test_on_a_cpu_bf16_is_taken_where_the_model_does_not_fit_and_the_processor_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for knows, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(memory, "has_bf16_instructions", lambda knows=knows: knows)
        assert holding_of(SEVEN, "auto", CPU, 8 * GIB).dtype == dtype
        assert holding_of(SEVEN, "float32", CPU, 8 * GIB).dtype == torch.float32


def test_a_budget_below_one_block_is_refused_with_what_is_needed() -> None:
    with pytest.raises(InputError, match=r"one block needs \d+\.\d+ GiB in float32"):
        holding_of(SEVEN, "float32", CPU, GIB)


@given(st.integers(1, 60), st.integers(1, 60))
def test_more_memory_never_gives_less(one: int, other: int) -> None:
    small, large = (holding_of(SEVEN, "bfloat16", CPU, (2 * GIB) + n * (GIB >> 2)) for n in sorted((one, other)))
    assert large.whole >= small.whole
    if not large.whole:
        assert (large.ahead, large.whole_head) >= (small.ahead, small.whole_head)


def test_several_gpus_hold_what_is_too_large_for_one() -> None:
    of_three = holding_on_gpus(SEVEN, "auto", [8 * GIB] * 3)
    assert of_three is not None and of_three.whole and of_three.gpus == (8 * GIB,) * 3 and of_three.dtype == torch.bfloat16
    assert holding_on_gpus(SEVEN, "auto", [8 * GIB]) is None  # there is but one
    assert holding_on_gpus(SEVEN, "auto", [40 * GIB, 40 * GIB]) is None  # one is enough
    assert holding_on_gpus(SEVEN, "auto", [7 * GIB, 7 * GIB]) is None  # two aren't


def test_sizes_are_those_of_the_checkpoint(tiny: Callable[..., Path]) -> None:
    folder = open_folder(tiny("llama", shards="20KB"))
    index = open_index(folder.path)
    found = sizes_of(index, folder)
    assert found.total == sum(torch.Size(info.shape).numel() for info in index.tensors.values())
    blocks = [
        sum(torch.Size(i.shape).numel() for n, i in index.tensors.items() if n.startswith(f"model.layers.{layer}.")) for layer in range(4)
    ]
    assert found.block == max(blocks) and found.outside == 32 and found.widest == 64 and found.largest == 64 * 32
    assert found.total == sum(blocks) + found.outside + 2 * found.head
