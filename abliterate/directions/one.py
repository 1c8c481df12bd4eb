"""Select one of the estimated directions, for a direction file."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from abliterate.directions.estimate import Directions
from abliterate.directions.interpolated import interpolated
from abliterate.errors import InputError


def one_direction(
    directions: Directions, estimator: str, layer: float | None, position: int | None
) -> Float[Tensor, " d_model"] | Float[Tensor, "layer d_model"]:
    """An estimator's direction at block ``layer``, interpolated if it lies between two blocks (11.5); one per block if ``layer`` is None.

    ``position``: the token, -1 is the last; default: where the direction separates best, at this layer or on average over layers. Raises
    InputError if the estimator, layer or position does not exist, and for a subspace, which is more than one direction.
    """
    if estimator not in directions.direction:
        raise InputError(f"--estimator: there is no {estimator!r}; choose from {', '.join(map(repr, directions.direction))}")
    if estimator in directions.rows:
        raise InputError(f"--estimator {estimator}: a subspace is more than one direction; use it in a run (--estimators subspace)")
    found, score = directions.direction[estimator], directions.cohens_d[estimator]
    layers = found.shape[1] - 1
    if layer is not None and layer > layers - 1:
        raise InputError(f"--layer {layer:g}: the model has blocks 0 to {layers - 1}")
    if position is not None and -position > len(found):
        raise InputError(f"--position {position}: {estimator} has directions at {', '.join(str(-1 - i) for i in range(len(found)))}")
    if position is None:
        at = score[:, 1:].mean(1) if layer is None else score[:, round(layer + 1)]
        position = -1 - int(at.argmax())
    here = found[-1 - position]
    direction = here[1:] if layer is None else interpolated(here, layer + 1)
    if bool((direction.norm(dim=-1) == 0).any()):
        raise InputError(f"{estimator}, position {position}: the direction is zero at some block; choose another --layer or --position")
    return direction
