"""Decide from the changed tensors whether two checkpoints differ by directional ablation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.checkpoint.difference import Difference, TensorChange
from abliterate.checkpoint.records import BlockWeights, OverBlocks, Spread, Verdict, WeightsCompared
from abliterate.checkpoint.spectrum import KEPT, LEADING

AGREE = 0.9  # least |cos| between the directions of one block
OWN = 0.5  # least |cos| between the difference along a direction and what the matrix wrote there
SURE = 0.8  # the same, if it alone must show an edit, because the matrix shares no direction with others
REMOVED = 0.02  # the smallest share of a component that counts as removed
_FOLLOWS = 0.1  # the largest share of a bias's change outside its direction, besides rounding
_NAMED = 3  # tensors named in one sentence


def summary(found: Difference) -> WeightsCompared:
    """The verdict with its reasons, the counts, and figures on the direction of each block.

    ``directional``: every changed tensor writes into the stream; each difference has low rank and removes a share of what that matrix wrote
    along the direction; and the directions of a block agree, or each is clear by itself. ``identical``: no value differs. ``other``:
    anything else.
    """
    layers = _layers(found.changes)
    objections = _objections(found, layers)
    identical = not (found.changes or found.only_base or found.only_derived or found.reshaped)
    verdict: Verdict = "identical" if identical else "other" if objections or not found.changes else "directional"
    writers = [change for change in found.changes if change.directions is not None]
    return WeightsCompared(
        compared=True,
        verdict=verdict,
        reasons=(*(objections if verdict == "other" else _grounds(found, layers, verdict)), *_aside(found)),
        changed=dict(found.changed),
        same=dict(found.same),
        recast=len(found.recast),
        only_base=len(found.only_base),
        only_derived=len(found.only_derived),
        reshaped=len(found.reshaped),
        relative=_spread(change.relative for change in found.changes),
        rank=_spread((KEPT + 1 if c.rank is None else c.rank) for c in found.changes if c.values),
        left=_spread(change.left for change in writers),
        strength=_spread(change.strength for change in writers),
        layers=tuple(layers),
        over_layers=_over_layers(found.changes),
    )


def layer_directions(changes: Iterable[TensorChange]) -> dict[int, Float[Tensor, " d_model"]]:
    """The common direction of each block's changed writers, of length one. Its sign is arbitrary."""
    return {layer: _common(group)[0] for layer, group in _by_layer(changes).items()}


def _by_layer(changes: Iterable[TensorChange]) -> dict[int, list[TensorChange]]:
    groups: dict[int, list[TensorChange]] = {}
    for change in changes:
        if change.layer is not None and change.directions is not None:
            groups.setdefault(change.layer, []).append(change)
    return dict(sorted(groups.items()))


def _common(group: Sequence[TensorChange]) -> tuple[Float[Tensor, " d_model"], float]:
    """The leading singular vector of the stacked leading directions, and the share of their squared norm that it explains."""
    stacked = torch.stack([_rows(change)[0] for change in group]).double()
    _, sizes, rows = torch.linalg.svd(stacked, full_matrices=False)
    return rows[0], float(sizes[0] ** 2 / len(group))


def _rows(change: TensorChange) -> Float[Tensor, "k d_model"]:
    assert change.directions is not None
    return change.directions


def _layers(changes: Sequence[TensorChange]) -> list[BlockWeights]:
    """One row per block: how well its directions agree, and the cosine of its common direction with that of all blocks."""
    groups = _by_layer(changes)
    if not groups:
        return []
    common = {layer: _common(group) for layer, group in groups.items()}
    mean = torch.linalg.svd(torch.stack([row for row, _ in common.values()]), full_matrices=False)[2][0]
    return [
        BlockWeights(
            layer=layer,
            writers=len(group),
            agreement=_agreement(group),
            explained=common[layer][1],
            cos_to_mean=float((common[layer][0] @ mean).abs()),
            left=_spread(change.left for change in group),
            strength=_spread(change.strength for change in group),
        )
        for layer, group in groups.items()
    ]


def _agreement(group: Sequence[TensorChange]) -> float:
    """The smallest |cos| between the direction of a writer and that of the block's clearest writer.

    If an edit removes several directions: the part of one writer's directions, weighted by singular values, in the span of the other's.
    """
    clearest = max(group, key=lambda change: (change.rank or 0, change.values[0] / (change.floor or 1.0)))
    span = _rows(clearest).double()
    found = []
    for change in group:
        rows = _rows(change).double()
        weights = torch.tensor(change.values[: len(rows)], dtype=torch.float64).square()
        inside = (rows @ span.T).square().sum(1)
        found.append(float(((weights * inside).sum() / weights.sum()).sqrt()))
    return min(found)


def _over_layers(changes: Sequence[TensorChange]) -> OverBlocks | None:
    """How well one direction fits all blocks."""
    groups = _by_layer(changes)
    if not groups:
        return None
    rows = torch.stack([_common(group)[0] for group in groups.values()])
    _, sizes, mean = torch.linalg.svd(rows, full_matrices=False)
    cosines = (rows @ mean[0]).abs()
    return OverBlocks(explained=float(sizes[0] ** 2 / len(rows)), cos_min=float(cosines.min()), cos_median=float(cosines.median()))


def _spread(given: Iterable[float | None]) -> Spread | None:
    values = [float(value) for value in given if value is not None]
    return Spread(min=min(values), median=median(values), max=max(values)) if values else None


def _objections(found: Difference, layers: Sequence[BlockWeights]) -> list[str]:
    """The reasons why this is not a directional edit, one sentence each."""
    changes, said = found.changes, []
    others = {kind: n for kind, n in found.changed.items() if any(c.kind == kind and not c.writer for c in changes)}
    if others:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(others.items()))
        said.append(f"{sum(others.values())} changed tensors don't write into the residual stream ({kinds}).")
    matrices = [change for change in changes if change.values]
    high = [change for change in matrices if change.rank is None or change.rank > LEADING]
    said += _sentence(high, f"differences have a rank above {LEADING}")
    said += _sentence([c for c in matrices if c.rank == 0], "differences can't be told from rounding")
    along = [change for change in changes if change.directions is not None]
    alone = {change.layer for change in along if not _sure(change)}
    apart = [layer for layer in layers if not layer.agreement > AGREE and layer.layer in alone]
    if apart:
        worst = min(apart, key=lambda layer: layer.agreement)
        said.append(
            f"The directions disagree in {len(apart)} of {len(layers)} blocks (smallest |cos| {worst.agreement:.2f}, block {worst.layer})."
        )
    said += _sentence([c for c in along if not (c.own or 0) > OWN], "differences are not a share of what the matrix itself wrote there")
    kept = [c for c in along if not (c.strength or 0) > (0 if _sure(c) else REMOVED)]
    said += _sentence(kept, "components along the direction did not become less")
    biases = [change for change in changes if change.pair is not None]
    directions = _bias_directions(changes) if biases else {}
    said += _sentence([bias for bias in biases if not _follows(bias, directions)], "biases changed outside the direction")
    if said and matrices and all(change.rank is not None and 4 * change.rank <= min(change.shape) for change in matrices):
        said.append(f"No difference has a rank above {max(change.rank or 0 for change in matrices)}, as with a merged adapter (LoRA).")
    return said


def _sentence(wrong: Sequence[TensorChange], what: str) -> list[str]:
    return [f"{len(wrong)} {what} ({_listed([change.name for change in wrong])})."] if wrong else []


def _sure(change: TensorChange) -> bool:
    """Whether a matrix's difference is so clearly a share of what it wrote along a direction that chance hardly explains it."""
    return (change.own or 0) > SURE


def _bias_directions(changes: Sequence[TensorChange]) -> dict[tuple[int | None, str | None], Float[Tensor, " d_model"]]:
    """The common direction of each block's writers, by kind; None stands for all kinds."""
    groups: dict[tuple[int | None, str | None], list[TensorChange]] = {}
    for change in changes:
        if change.directions is not None:
            for kind in (change.kind, None):
                groups.setdefault((change.layer, kind), []).append(change)
    return {place: _common(group)[0] for place, group in groups.items()}


def _follows(change: TensorChange, directions: Mapping[tuple[int | None, str | None], Float[Tensor, " d_model"]]) -> bool:
    """Whether a bias changed only along its block's direction (of writers of its kind, else of all) and possibly in length. False if no
    matrix of its block changed."""
    direction = directions.get((change.layer, change.kind), directions.get((change.layer, None)))
    if change.pair is None or direction is None:
        return change.pair is None
    before, after = change.pair.double()
    span = torch.linalg.qr(torch.stack([before, direction], 1)).Q
    return float((after - span @ (span.T @ after)).norm()) <= _FOLLOWS * float((after - before).norm()) + (change.floor or 0.0)


def _grounds(found: Difference, layers: Sequence[BlockWeights], verdict: Verdict) -> list[str]:
    if verdict == "identical":
        return ["No value differs."]
    count, along = sum(found.changed.values()), [c for c in found.changes if c.directions is not None]
    rank = max((change.rank or 0) for change in along) if along else 0
    said = [f"All {count} changed tensors write into the stream.", f"Each difference is of rank {'1' if rank == 1 else f'{rank} or less'}."]
    if layers:
        least = min(layer.agreement for layer in layers)
        own = "Each matrix has its own direction, and each difference is a share of what that matrix wrote"
        said.append(f"{'Within a block the directions agree' if least > AGREE else own} (smallest |cos| within a block {least:.3f}).")
    over = _over_layers(found.changes)
    if over:
        one = "One direction serves all blocks" if over.cos_min > AGREE else "Each block has its own direction"
        said.append(f"{one} (smallest |cos| to their mean {over.cos_min:.3f}).")
    strengths = [change.strength for change in along if change.strength is not None]
    if strengths:
        said.append(f"Along these directions {100 * min(strengths):.1f} to {100 * max(strengths):.1f} % of what matrices wrote is removed.")
    tests: list[tuple[str, Callable[[TensorChange], bool]]] = [
        ("columns", lambda change: change.rescaled == "columns"),
        ("rows", lambda change: change.rescaled == "rows"),
    ]
    said += [f"The {what} of {sum(map(test, along))} matrices were also rescaled." for what, test in tests if any(map(test, along))]
    return said


def _aside(found: Difference) -> list[str]:
    """Facts that don't affect the verdict."""
    lists = (
        ("Only the base has", found.only_base),
        ("Only the derived model has", found.only_derived),
        ("Different shapes", [entry.name for entry in found.reshaped]),
        ("Same values in another dtype", found.recast),
    )
    return [f"{what}: {len(names)} ({_listed(names)})." for what, names in lists if names]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
