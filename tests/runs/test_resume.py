"""Work under way that is kept: read back exactly where it was made from the same, and as good as absent otherwise."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from abliterate.runs.resume import NO_STORE, ResumeStore

TENSORS = {"a": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), "b": torch.tensor(7.0)}


@pytest.fixture
def kept(tmp_path: Path) -> ResumeStore:
    return ResumeStore(tmp_path / "kept").of({"seed": 1}, [torch.ones(3)])


def test_values_and_states_come_back_as_they_were(kept: ResumeStore) -> None:
    value = {"replies": [[1, 2], []], "kl": [0.1, math.inf], "name": "ä"}
    kept.save_value("value", value)
    kept.save_state("state", TENSORS, value)
    assert kept.value("value") == value
    found = kept.state("state")
    assert found is not None and found[1] == value and found[0].keys() == TENSORS.keys()
    assert all(torch.equal(found[0][name], tensor) for name, tensor in TENSORS.items())
    kept.save_value("value", 2)
    assert kept.value("value") == 2
    assert kept.folder is not None and sorted(p.name for p in kept.folder.iterdir()) == ["state", "value"]


def test_what_came_of_something_else_is_not_used(kept: ResumeStore) -> None:
    kept.save_value("value", 1)
    base = ResumeStore(kept.folder)
    for other in (base, base.of({"seed": 2}, [torch.ones(3)]), base.of({"seed": 1}, [torch.zeros(3)]), kept.of(1)):
        assert other.value("value") is None
    assert base.of({"seed": 1}, [torch.ones(3)]).value("value") == 1


def test_no_broken_cut_or_foreign_file_is_used(kept: ResumeStore) -> None:
    kept.save_state("state", TENSORS, [1])
    assert kept.folder is not None
    file = kept.folder / "state"
    whole = file.read_bytes()
    for broken in (b"", b"\n", whole[:-1], whole[:40], whole[:-9] + b"x" + whole[-8:], b"{}", whole + b" "):
        file.write_bytes(broken)
        assert kept.state("state") is None and kept.value("state") is None
    file.unlink()
    file.mkdir()
    assert kept.state("state") is None
    kept.save_value("state", 1)  # a folder stands in its place: nothing is kept, nothing fails
    assert kept.value("state") is None


def test_one_name_s_content_is_not_another_s(kept: ResumeStore) -> None:
    kept.save_value("one", 1)
    assert kept.folder is not None
    (kept.folder / "one").rename(kept.folder / "other")
    assert kept.value("other") is None


def test_without_a_folder_nothing_is_kept() -> None:
    NO_STORE.save_value("value", 1)
    NO_STORE.of(1).save_state("state", TENSORS, 1)
    NO_STORE.forget()
    assert NO_STORE.value("value") is None and NO_STORE.of(1).state("state") is None


def test_what_is_forgotten_is_gone(kept: ResumeStore) -> None:
    kept.save_value("value", 1)
    kept.forget()
    assert kept.folder is not None and not kept.folder.exists()
    kept.forget()
