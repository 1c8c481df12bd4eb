"""The directions file round-trips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from abliterate.config import DEFAULT_ESTIMATORS as ESTIMATORS
from abliterate.directions.estimate import Directions
from abliterate.directions.file import load_directions, save_directions
from abliterate.errors import InputError


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    direction = {name: torch.randn(2, 5, 8) for name in ESTIMATORS}
    auc = {name: torch.rand(2, 5) for name in ESTIMATORS}
    cohens_d = {name: torch.randn(5, 2).T for name in ESTIMATORS}
    save_directions(Directions(direction, auc, cohens_d), tmp_path / "d")
    back = load_directions(tmp_path / "d")
    for saved, loaded in ((direction, back.direction), (auc, back.auc), (cohens_d, back.cohens_d)):
        assert all(torch.equal(loaded[name], saved[name]) for name in ESTIMATORS)


def test_a_file_without_a_header_is_refused_in_a_line(tmp_path: Path) -> None:
    save_file({"mean": torch.zeros(2, 5, 8)}, tmp_path / "d")
    with pytest.raises(InputError, match=r"d: made by an older version; run again into another --out$"):
        load_directions(tmp_path / "d")
