"""The leading subspace of the categories' differences, and the table of all estimators."""

from __future__ import annotations

import torch

from abliterate.config import DEFAULT_ESTIMATORS, ESTIMATORS
from abliterate.directions.estimators.sample import Sample
from abliterate.directions.estimators.subspace import category_differences, leading_rows, within
from abliterate.directions.estimators.table import TABLE

LAYERS, WIDTH = 3, 12


def _sample(seed: int = 0) -> Sample:
    draw = torch.Generator().manual_seed(seed)
    sets = [torch.randn(n, LAYERS + 1, WIDTH, generator=draw) + shift for n, shift in ((12, 1.0), (10, 0.0), (9, 0.3))]
    means = [torch.stack([own.mean(0), own.mean(0) * 2]) for own in sets]
    return Sample(*means, *sets, categories=("a", "b", "c") * 4)


def test_every_category_gives_the_difference_of_its_own_mean() -> None:
    target, baseline = torch.randn(6, 2, 4), torch.randn(2, 4)
    found = category_differences(target, ["b", "a", "b", "b", "a", "b"], baseline)
    torch.testing.assert_close(found[:, 0], (target[[1, 4]].mean(0) - baseline) * (2 / 6) ** 0.5)
    torch.testing.assert_close(found[:, 1], (target[[0, 2, 3, 5]].mean(0) - baseline) * (4 / 6) ** 0.5)


def test_the_leading_rows_hold_the_most_that_any_rows_can() -> None:
    rows = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    found = leading_rows(rows, 2)
    units = found / found.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(units @ units.mT, torch.eye(2).expand(2, -1, -1), atol=1e-5, rtol=0)
    held = (rows @ units.mT).square().sum((-1, -2))
    lengths = torch.linalg.svdvals(rows)
    torch.testing.assert_close(held, lengths[:, :2].square().sum(-1))
    torch.testing.assert_close(found.norm(dim=-1), lengths[:, :2])
    assert bool(((found * rows.sum(-2, keepdim=True)).sum(-1) >= 0).all())


def test_fewer_rows_than_the_rank_are_all_there() -> None:
    assert leading_rows(torch.randn(3, 1, 8)).shape == (3, 1, 8)


def test_a_vector_within_the_rows_stays_and_one_across_goes() -> None:
    rows = torch.tensor([[2.0, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 0]])
    assert torch.equal(within(torch.tensor([1.0, 2, 3, 4]), rows), torch.tensor([1.0, 2, 0, 0]))


def test_the_table_holds_the_estimators_of_the_settings() -> None:
    assert tuple(TABLE) == ESTIMATORS and set(DEFAULT_ESTIMATORS) <= set(ESTIMATORS)


def test_every_estimator_gives_what_the_table_says() -> None:
    sample = _sample()
    for name, estimator in TABLE.items():
        found = estimator.function(sample)
        positions = 1 if estimator.per_prompt else 2
        rank = (estimator.rank,) if estimator.rank > 1 else ()
        assert found.shape == (positions, LAYERS + 1, *rank, WIDTH), name
        assert bool(torch.isfinite(found).all())


def test_estimators_that_need_means_alone_never_look_at_the_prompts() -> None:
    sample = _sample()
    none = Sample(sample.target_mean, sample.baseline_mean, sample.harmless_mean, *(torch.zeros(0, LAYERS + 1, WIDTH) for _ in range(3)))
    for estimator in TABLE.values():
        if not estimator.per_prompt:
            assert torch.equal(estimator.function(none), estimator.function(sample))


def test_directions_out_of_vectors_lead_from_baseline_to_target_along_themselves() -> None:
    """Their length is the difference of means along them, so that adding one takes a baseline prompt to the target."""
    sample = _sample()
    for name in ("probe", "lda", "leace"):
        found = TABLE[name].function(sample)[0].double()
        along = (found * sample.difference[0]).sum(-1) / found.norm(dim=-1)
        torch.testing.assert_close(along, found.norm(dim=-1))
