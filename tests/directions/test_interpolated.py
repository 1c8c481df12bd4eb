"""Directions between two layers."""

from __future__ import annotations

import pytest
import torch

from abliterate.directions.interpolated import interpolated


def _direction() -> torch.Tensor:
    return torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 6)[:, None]


@pytest.mark.parametrize("index", [0.0, 1.0, 2.0, 3.0, 4.0])
def test_at_a_layer_it_is_that_layers_direction(index: float) -> None:
    torch.testing.assert_close(interpolated(_direction(), index), _direction()[:, int(index)])


@pytest.mark.parametrize("index", [0.5, 2.25, 3.9])
def test_between_two_layers_it_is_a_mix_of_their_unit_directions(index: int) -> None:
    direction = _direction()
    low = int(index)
    units = direction / direction.norm(dim=-1, keepdim=True)
    mixed = units[:, low] * (1 - index + low) + units[:, low + 1] * (index - low)
    found = interpolated(direction, index)
    torch.testing.assert_close(found / found.norm(dim=-1, keepdim=True), mixed / mixed.norm(dim=-1, keepdim=True))
    lengths = direction.norm(dim=-1)
    torch.testing.assert_close(found.norm(dim=-1), lengths[:, low] * (1 - index + low) + lengths[:, low + 1] * (index - low))


@pytest.mark.parametrize("index", [-0.1, 4.01])
def test_outside_of_the_layers_there_is_none(index: float) -> None:
    with pytest.raises(ValueError, match="not within"):
        interpolated(_direction(), index)
