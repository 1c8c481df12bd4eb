"""The activations file round-trips."""

from __future__ import annotations

from pathlib import Path

import torch

from abliterate.directions.activations import Activations, load_activations, save_activations
from abliterate.directions.collect import SetActivations
from abliterate.directions.keys import BASELINE, TARGET, GroupKey
from abliterate.prompts import Role

ROLES: tuple[Role, ...] = ("target", "baseline", "harmless", "keep")


def _set(seed: int) -> SetActivations:
    torch.manual_seed(seed)
    vectors = torch.randn(5, 2, 3, 4)
    return SetActivations(vectors.mean(0), vectors.square().mean(0), vectors)


def _activations() -> Activations:
    train = {GroupKey(role): _set(i) for i, role in enumerate(ROLES)}
    val = {key: torch.randn(3, 2, 3, 4) for key in (TARGET, BASELINE)}
    return Activations(train, val, (-1, -2), {"harmful": "abc", "无害": "def"})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = _activations()
    save_activations(saved, tmp_path / "a")
    back = load_activations(tmp_path / "a")
    assert back.positions == saved.positions
    assert back.hashes == saved.hashes
    assert back.train.keys() == saved.train.keys() and back.val.keys() == saved.val.keys()
    for role, found in saved.train.items():
        assert torch.equal(back.train[role].mean, found.mean)
        assert torch.equal(back.train[role].second_moment, found.second_moment)
        assert torch.equal(back.train[role].last, found.last)
    assert all(torch.equal(back.val[role], vectors) for role, vectors in saved.val.items())


def test_last_is_the_last_token_of_each_prompt() -> None:
    found = _set(0)
    assert torch.equal(found.last, found.vectors[:, 0])


def test_a_file_without_val_has_none(tmp_path: Path) -> None:
    saved = _activations()
    save_activations(Activations(saved.train, {}, saved.positions, saved.hashes), tmp_path / "a")
    assert load_activations(tmp_path / "a").val == {}
